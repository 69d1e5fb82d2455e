"""The definition of correct: compute every row with the host's own code, then choose, row by row.

No work is saved here. Each packed path must equal this one in value and in every gradient
(tests/laws). Put ``with turnout.execute.reference_execution():`` around a forward pass to use it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pick_rows(
    full_BTD: Tensor, skipped_BTD: Tensor, index_N: Tensor, weight_N: Tensor | None
) -> Tensor:
    """Row by row: what the unit gave where it ran, else what skipping means.

    full_BTD: the unit's result for all rows. skipped_BTD: the result of a skipped row (zeros for
    a change, the old state for a state). weight_N scales the change of the rows that ran.
    """
    batch, length = skipped_BTD.shape[:2]
    full = full_BTD.reshape(batch * length, -1)
    skipped = skipped_BTD.reshape(batch * length, -1)
    place = {int(row): n for n, row in enumerate(index_N)}
    rows = []
    for row in range(batch * length):
        if row not in place:
            rows.append(skipped[row])
        elif weight_N is None:
            rows.append(full[row])
        else:
            weight = weight_N[place[row]].to(full.dtype)
            rows.append(full[row] + (weight - 1) * (full[row] - skipped[row]))
    return torch.stack(rows).view(batch, length, -1)


def pick_sequences(full_BTD: Tensor, x_BTD: Tensor, active_B: Tensor) -> Tensor:
    """Sequence by sequence: the block's result where it ran, else its input."""
    return torch.stack(
        [full_BTD[b] if bool(active_B[b]) else x_BTD[b] for b in range(x_BTD.shape[0])]
    )
