"""Search settings of a recipe by Optuna, through ``Trainer.hyperparameter_search``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers.trainer_callback import PrinterCallback

from turnout.double.config import TasksTrainConfig
from turnout.double.data import TasksData
from turnout.double.pipeline import load_tasks, new_model
from turnout.double.prepare import check_routers, prepare_tasks
from turnout.double.recipe import TasksRecipe
from turnout.double.strategies import Unfreezing, hold, scales
from turnout.double.trainer import TasksTrainer
from turnout.errors import UserError
from turnout.files import make_folder, write_json, write_text
from turnout.objectives import ObjectivesConfig
from turnout.train.data import Data, encode
from turnout.train.fit import arguments_of, check_one_process, set_dropout

# of the search, not of a trial; or not to be written as a text
FIXED = {"precision", "evaluate_every", "patience", "seed", "weights", "named"}
WIDE = 10  # a range whose ends are so many times apart is searched by its logarithm


@dataclass(frozen=True)
class Range:
    """Numbers from low to high."""

    low: float
    high: float
    whole: bool = False

    def suggest(self, trial: Any, name: str) -> float:
        """The number of a trial."""
        wide = self.low > 0 and self.high / self.low >= WIDE
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=wide)
        return trial.suggest_float(name, self.low, self.high, log=wide)


@dataclass(frozen=True)
class Choice:
    """One of some values, as a recipe writes them."""

    values: tuple[str, ...]

    def suggest(self, trial: Any, name: str) -> str:
        """The value of a trial."""
        return trial.suggest_categorical(name, list(self.values))


Space = Mapping[str, Range | Choice]


def space_of(texts: Sequence[str]) -> dict[str, Range | Choice]:
    """``learning_rate=1e-5..1e-3`` and ``strategy=full|lora`` as a space; fields are those of
    ``train``. Raises UserError for an unknown field, and for what is neither."""
    found: dict[str, Range | Choice] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("train.")
        if name not in TasksTrainConfig.model_fields:
            raise UserError(
                f"{text!r}: train has no field {name!r}; it has "
                f"{', '.join(TasksTrainConfig.model_fields)}"
            )
        if name in FIXED:
            raise UserError(f"{text!r}: {name} is the same for all trials: set it in the recipe")
        found[name] = _values(text, value.strip() if equals else "", _whole(name))
    if not found:
        raise UserError("name at least one field to search, as learning_rate=1e-5..1e-3")
    return found


def _whole(name: str) -> bool:
    """Does a field take whole numbers only."""
    field = TasksTrainConfig.model_json_schema()["properties"][name]
    return "integer" in {each.get("type") for each in (field, *field.get("anyOf", ()))}


def _values(text: str, value: str, whole: bool) -> Range | Choice:
    low, dots, high = value.partition("..")
    if dots:
        try:
            ends = float(low), float(high)
        except ValueError:
            ends = math.nan, math.nan
        if not ends[0] < ends[1]:
            raise UserError(f"{text!r}: a range is written LOW..HIGH, with two numbers")
        if whole and any(end != int(end) for end in ends):
            raise UserError(f"{text!r}: this field takes whole numbers")
        return Range(*ends, whole)
    choices = tuple(each.strip() for each in value.split("|") if each.strip())
    if len(choices) < 2:
        raise UserError(f"{text!r}: give LOW..HIGH, or several values as A|B|C")
    return Choice(choices)


class SearchTrainer(TasksTrainer):
    """Trains anew for each trial, with the trial's settings in place of the recipe's."""

    base: TasksTrainConfig
    data: Mapping[str, Data]

    def settings_of(self, trial: Any) -> TasksTrainConfig:
        """The recipe's settings with those of a trial; None = the recipe's."""
        if trial is None or self.hp_space is None:
            return self.base
        return settled({**self.base.model_dump(mode="json"), **self.hp_space(trial)})

    def _hp_search_setup(self, trial: Any) -> None:
        self._trial = trial
        if self.hp_search_backend is None or trial is None:
            return
        host: Any = self.model
        self.tasks_config = config = self.settings_of(trial)
        self.train_config = plain = config.plain()
        self.train_dataset = TasksData.of(self.data, config, host.tasks).rows()
        args: Any = self.args
        args.num_train_epochs, args.max_steps = plain.epochs, plain.max_steps or -1
        args.gradient_accumulation_steps = plain.accumulate
        args.learning_rate, args.max_grad_norm = plain.learning_rate, plain.clip
        args.weight_decay, args.warmup_steps = plain.weight_decay, plain.warmup
        self.watch(host)
        self.remove_callback(Unfreezing)
        if config.strategy == "discriminative" and config.unfreeze > 0:
            self.add_callback(Unfreezing(host, config.unfreeze))
        self.create_accelerator_and_postprocess()

    def create_optimizer(self, model: Any = None) -> Any:
        """As before, for the trial's own model."""
        host: Any = self.model
        self._scales = scales(host, self.tasks_config)
        return super().create_optimizer(model)


def settled(fields: Mapping[str, Any]) -> TasksTrainConfig:
    """Settings from fields whose values may be texts. Raises UserError for a wrong one."""
    try:
        return TasksTrainConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"train.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def search(
    recipe: TasksRecipe,
    out: str | Path,
    space: Space,
    trials: int = 20,
    *,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Search for the settings with the best mean validation score; the best trial's.

    Leaves best.yaml (the recipe with them), trials.json and study.db in ``out``; started again, it
    goes on until there are so many trials. Raises UserError without Optuna, and as training does.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("searching needs Optuna: pip install 'turnout[search]'") from None
    check_one_process()
    check_routers(recipe)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out = make_folder(Path(out))
    tasks, raw = load_tasks(recipe, say)
    _, tokenizer = new_model(recipe, tasks)
    data = {name: encode(task, raw[name], tokenizer) for name, task in tasks.items()}
    storage = f"sqlite:///{out / 'study.db'}"
    named = {"study_name": "turnout", "storage": storage, "load_if_exists": True}
    whole = optuna.pruners.NopPruner()  # each trial trains to its end
    study = optuna.create_study(direction="maximize", pruner=whole, **named)
    done = len([trial for trial in study.trials if trial.state.is_finished()])
    if done < trials:
        trainer = _trainer(recipe, data, out)

        def suggested(trial: Any) -> dict[str, Any]:
            return {name: each.suggest(trial, name) for name, each in space.items()}

        trainer.hyperparameter_search(
            hp_space=suggested,
            compute_objective=lambda metrics: metrics["eval_score"],
            n_trials=trials - done,
            direction="maximize",
            backend="optuna",
            # what is drawn goes on, too, where a search was stopped
            pruner=whole,
            sampler=optuna.samplers.TPESampler(seed=recipe.train.seed + done),
            **named,
        )
        study = optuna.load_study(study_name="turnout", storage=storage)
    table = [
        {"trial": each.number, "score": each.value, **each.params}
        for each in study.trials
        if each.state == optuna.trial.TrialState.COMPLETE
    ]
    write_json(out / "trials.json", table)
    best = study.best_trial
    say(f"best of {len(table)} trials: score {best.value:.4f} with {best.params}")
    found = settled({**recipe.train.model_dump(mode="json"), **best.params})
    write_text(out / "best.yaml", recipe.model_copy(update={"train": found}).text())
    return dict(best.params)


def _trainer(recipe: TasksRecipe, data: Mapping[str, Data], out: Path) -> SearchTrainer:
    """A trainer that makes its model anew for each trial."""
    config = recipe.train
    plain = config.plain().model_copy(update={"batch_size": 1})
    arguments = arguments_of(plain, out / "checkpoints", "eval_score", plain.precision == "bf16")
    arguments.save_strategy = "no"  # type: ignore[assignment]
    tasks = {name: each.task for name, each in data.items()}
    mixed = TasksData.of(data, config)
    made: list[SearchTrainer] = []

    def model_init(trial: Any = None) -> Any:
        settings = made[0].settings_of(trial) if made else config
        fresh, _ = new_model(recipe.model_copy(update={"train": settings}), tasks)
        if trial is not None:
            prepare_tasks(fresh, TasksData.of(data, settings, fresh.tasks), _silent)
        set_dropout(fresh, settings.dropout, None)
        hold(fresh, settings, recipe.bridge is None or recipe.bridge.frozen)
        return fresh

    trainer = SearchTrainer(
        model_init=model_init,
        args=arguments,
        train_dataset=mixed.rows(),
        eval_dataset=mixed.validation,
        data_collator=mixed.collate,
        processing_class=mixed.tokenizer,
        train_config=plain,
        weights=ObjectivesConfig(),
        tasks_config=config,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.base, trainer.data = config, data
    trainer.task_score = lambda: mixed.score(trainer.model)
    made.append(trainer)
    return trainer


def _silent(text: str) -> None:
    """What each trial prepares would drown what is found."""
