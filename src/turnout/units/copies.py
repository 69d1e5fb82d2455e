"""Experts that begin as copies of a host's feed-forward network: sparse upcycling.

E copies stand in place of one network; an input is served by the few that a router takes
(Komatsuzaki et al. 2022, arXiv 2212.05055). Their answers are averaged with its weights, scaled to
add up to 1, so the model is the host until the copies have learned. A gate with ``modulate`` keeps
its weights as they are, since a single one that is always 1 would teach it nothing (the paper
compares both). With one copy a token the work stays that of the host, with E times the weights.
The bias of the outgoing projection stays the host's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.hosts.linear import matrix_of
from turnout.hosts.view import BlockView, unit_name


class CopyBank(nn.Module):
    """The copies of one block's network. E: copies; H: projections fused in one matrix.

    into: ``unit_name`` of a projection into the neurons -> (E, H, F, D); bias: (E, H, F).
    out: (E, D, F).
    """

    def __init__(self, view: BlockView, copies: int) -> None:
        super().__init__()
        into, (_, out) = view.neurons()
        self.into, self.bias = nn.ParameterDict(), nn.ParameterDict()
        for path, module in into:
            name = unit_name(path)
            weight, bias = matrix_of(module)
            self.into[name] = _copied(weight.view(view.halves, -1, weight.shape[1]), copies)
            if bias is not None:
                self.bias[name] = _copied(bias.view(view.halves, -1), copies)
        self.out = _copied(matrix_of(out)[0], copies)

    def rows(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """All copies of a projection into the neurons: weight (H, E, F, D) and bias (H, E, F)."""
        bias = self.bias[name].transpose(0, 1).to(dtype) if name in self.bias else None
        return self.into[name].transpose(0, 1).to(dtype), bias

    def columns(self, dtype: torch.dtype) -> Tensor:
        """All copies of the projection out of the neurons as one, (D, E * F)."""
        return self.out.transpose(0, 1).flatten(1).to(dtype)


def _copied(weight: Tensor, copies: int) -> nn.Parameter:
    return nn.Parameter(weight.detach().expand(copies, *weight.shape).clone())
