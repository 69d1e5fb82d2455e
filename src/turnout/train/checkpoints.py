"""Where a training that was stopped goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from turnout.errors import UserError
from turnout.files import read_json
from turnout.train.saving import check_weights


def last_checkpoint(folder: str | Path) -> str | None:
    """The last whole checkpoint in a folder; later ones that were cut off are removed.

    Trainer writes its state last, so a checkpoint without it was stopped half-way. Raises UserError
    where one is there and the system does not let it be read: that is no reason to remove it.
    """
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.split("-")[1].isdecimal()]
    for path in sorted(found, key=lambda path: -int(path.name.split("-")[1])):
        try:
            read_json(path / "trainer_state.json")
            check_weights(path)
            return str(path)
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            shutil.rmtree(path)
    return None
