"""Load routed models: the host by Transformers, the routers by us, nothing by pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from turnout.errors import UserError, first_line
from turnout.files import atomic_dir, make_folder, read_json
from turnout.hosts.tasks_model import TasksModel
from turnout.install import install

SPEC_VERSION = 1
PREFIX = "turnout."


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No load reports and bars: our tensors look unexpected to the host's own loader."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def load_host(folder: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A saved model without its routers, by the class named in its config.

    Raises UserError for a folder that isn't one, for a weights file that is cut short, and for
    tensors that are missing, left over or of another shape.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder}: no config.json here, so this is not a saved model")
    found = read_json(config_file)
    names = (found.get("architectures") if isinstance(found, dict) else None) or [None]
    own = TasksModel if names[0] == TasksModel.__name__ else None
    cls = own or getattr(transformers, str(names[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise UserError(f"{config_file}: architectures names no Transformers model: {names[0]!r}")
    check_weights(folder)
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model, report = cls.from_pretrained(  # type: ignore[misc]
                folder,
                config=config,
                output_loading_info=True,
                **{"dtype": torch.float32, **kwargs},
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from error
    extra = [key for key in report["unexpected_keys"] if not key.startswith(PREFIX)]
    if report["missing_keys"] or extra:
        raise UserError(f"{folder}: {_misfit(set(report['missing_keys']), set(extra))}")
    return model


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer that was saved in a folder. Raises UserError where it can't be read."""
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error


def load(run: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A routed model, ready to use, from a run folder or from ``save_pretrained``.

    Needs no training data. Keyword arguments go to ``from_pretrained``. Raises UserError for a
    folder without routers, of another version, or with missing, extra or truncated tensors.
    """
    folder = Path(run)
    if (folder / "routed" / "config.json").is_file():
        folder = folder / "routed"
    elif (folder / "run.json").is_file():
        raise UserError(
            f"{folder} has no routed/ yet: its training did not finish. Go on with: "
            f"turnout train {folder}/recipe.yaml --out {folder}"
        )
    spec = _spec(folder)
    model = load_host(folder, **kwargs)
    noise, tasks = spec.get("noise", ()), spec.get("tasks", ())
    install(model, spec["routers"], noise=noise, tasks=tasks, ordered=True)
    _load_routers(model, folder)
    routing: Any = model.turnout
    for name, router in routing.routers.items():
        router.levels = [(share, level) for share, level in spec.get("levels", {}).get(name, [])]
    routing.budget = spec.get("budget", 1.0)
    routing.noise_scale = spec.get("noise_scale", 1.0)
    note_dial(model)
    return model.eval()


def save(model: PreTrainedModel, tokenizer: Any, folder: str | Path) -> None:
    """Save a model and its tokenizer, whole or not at all. Raises UserError, as for a full disk."""
    make_folder(Path(folder).parent)
    with atomic_dir(folder) as temp, quiet_loading():
        model.save_pretrained(temp)
        tokenizer.save_pretrained(temp)


def _spec(folder: Path) -> dict[str, Any]:
    """What config.json says of the routers."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no config.json here, so this is not a saved model")
    found = read_json(file)
    spec = found.get("turnout") if isinstance(found, dict) else None
    if not isinstance(spec, dict):
        raise UserError(f"{file} has no 'turnout' entry: this model has no routers")
    if spec.get("version") != SPEC_VERSION:
        raise UserError(
            f"{file}: turnout version {spec.get('version')!r}; this library reads "
            f"{SPEC_VERSION}. Load it with the turnout release that wrote it"
        )
    if not isinstance(spec.get("routers"), list):
        raise UserError(f"{file}: the 'turnout' entry lists no routers")
    return spec


def note_dial(model: PreTrainedModel) -> None:
    """Write the calibrated dial into the config, so that saving keeps it."""
    routing: Any = model.turnout
    routing.spec["levels"] = {
        name: [list(pair) for pair in r.levels] for name, r in routing.routers.items()
    }


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Restore all tensors of a model from a checkpoint, exactly, key conversions included.

    Trainer's own reader skips the conversions that some hosts need (ViT, Mixtral) and only warns.
    A model with layers of PEFT under way is read as it stands: no class could be opened with them.
    """
    if any(".lora_A." in name for name in model.state_dict()):
        state = _tensors(Path(folder))
    else:
        state = load_host(folder).state_dict()
        if hasattr(model, "turnout"):
            state.update(_tensors(Path(folder), PREFIX))
    missing = set(model.state_dict()) - set(state)
    extra = set(state) - set(model.state_dict())
    if missing or extra:
        raise UserError(f"{folder}: {_misfit(missing, extra)}")
    model.load_state_dict(state)


def _misfit(missing: set[str], extra: set[str]) -> str:
    return (
        "the tensors do not fit the config; "
        f"missing {sorted(missing)[:3] or 'none'}, extra {sorted(extra)[:3] or 'none'}"
    )


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no .safetensors file here; the checkpoint is incomplete")
    return files


def check_weights(folder: Path) -> None:
    """Raise UserError unless every weights file of a saved model can be read to its end."""
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as handle:
                handle.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: cannot be read ({error}); it is cut short or damaged. Copy it again or "
                "train again"
            ) from error


def _tensors(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Those of a saved model whose names begin so, as they lie in its files."""
    found = {}
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            found.update({k: handle.get_tensor(k) for k in handle.keys() if k.startswith(prefix)})  # noqa: SIM118
    return found


def _load_routers(model: PreTrainedModel, folder: Path) -> None:
    tensors = {name[len(PREFIX) :]: value for name, value in _tensors(folder, PREFIX).items()}
    routing: Any = model.turnout
    wanted = set(routing.state_dict())
    if wanted != set(tensors):
        raise UserError(f"{folder}: {_misfit(wanted - set(tensors), set(tensors) - wanted)}")
    try:
        routing.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{folder}: {error}") from None
