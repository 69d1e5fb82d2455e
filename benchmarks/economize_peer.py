"""economize (PyPI, 0.3.2 or newer): its decoding loop with the masks that we are given."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from frontier_claim import WORK
from torch import Tensor

from turnout.errors import UserError
from turnout.files import atomic_dir

VERSION = "0.3.2"
FOLDER = WORK / f"economize-{VERSION}"


def unpacked() -> None:
    """The package, beside the rows and on the path; it is not installed, so that nothing that we
    need is changed by it."""
    if not FOLDER.is_dir():
        with atomic_dir(FOLDER) as temp:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(temp)]
            done = subprocess.run(
                [*pip, f"economize=={VERSION}"], capture_output=True, text=True, check=False
            )
            wheels = list(temp.glob("*.whl"))
            if done.returncode or not wheels:
                raise UserError(f"economize {VERSION} cannot be downloaded: {done.stderr[-300:]}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extractall(temp)
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))


def decoder(model: Any, runs: Callable[[], Tensor]) -> Callable[[Tensor, int], Any]:
    """Decode (B, T) prompts for so many tokens. runs: the masks (L, B, places) of now."""
    unpacked()
    import economize
    from economize.runtime import LayerAction, LayerPolicy

    class Given(LayerPolicy):
        """A token runs a layer, or passes it with its keys and values written."""

        def decide(self, index: int, hidden: Tensor, ctx: Any) -> Any:
            mask_BT = runs()[index - 1, : len(hidden)].gather(1, ctx.positions)
            if bool(mask_BT.all()):
                return LayerAction.RUN
            return mask_BT if bool(mask_BT.any()) else LayerAction.SKIP_FILL_KV

    made = economize.apply(model)
    config = economize.DecodeConfig(cycle_length=1)
    loop = economize.CycleDecoder(made.runner, None, config, layer_policy=Given())

    @torch.inference_mode()
    def decode(ids_BT: Tensor, count: int) -> Any:
        return loop.decode_batch(list(ids_BT), count)

    return decode
