"""What a record of a host family says. A family is data; the code that reads it is in `attach`.

Every path is an attribute path inside one block (``attention.self.query``) or inside the model.
Leaves have roles, which tell what the leaf does for the rows (tokens) that do not run:

- ``delta``:    computes a change that the block adds to the stream; skipped rows give zeros.
- ``sequence``: as ``delta``, for a module that takes (B, T, D) only: rows go in as one sequence.
- ``open``:     first of several leaves: gathers the active rows; what follows sees them packed.
- ``close``:    last of several leaves: takes packed rows, scatters; skipped rows give zeros.
- ``residual``: called as leaf(x, residual): adds and normalises; skipped rows keep the residual.
- ``norm``:     a norm after the addition (post-norm hosts); skipped rows keep their state.
- ``query``:    projection needed only by rows that attend; skipped rows give zeros.
- ``visible``:  key and value projections: computed for every row, unless skipped rows are hidden.
- ``fused``:    query, key and value in one matrix: its first third as ``query``, the rest visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal[
    "delta", "sequence", "open", "close", "residual", "norm", "query", "visible", "fused"
]


@dataclass(frozen=True)
class Leaf:
    """One sub-module of a block: its attribute path and its role."""

    path: str
    role: Role


def leaves(**paths: str) -> tuple[Leaf, ...]:
    """Leaves from ``role="path path ..."`` keywords: the short form of a record."""
    return tuple(Leaf(path, role) for role, many in paths.items() for path in many.split())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Neurons:
    """The linear layers of a feed-forward network: paths in a block.

    into: those whose result is the neurons; of several names those count that a block has. out:
    the one that reads them. halves: projections fused in one matrix, one after the other.
    """

    into: tuple[str, ...]
    out: str
    halves: int = 1


@dataclass(frozen=True)
class Stack:
    """One list of blocks in a model.

    blocks: path of the ModuleList from the base model. name: prefix of its site keys.
    attention, ffn, cross: the leaves of the three sub-blocks. mask: model argument that holds
    the (B, T) mask. mask_method: method of the base model that turns that mask into one a block
    can use (speech models shorten the input). tuple_output: a block returns more than the hidden
    state, so it must be entered even when nothing runs. hideable: skipped tokens can be removed
    from attention (encoders). embeddings: path from the base model of the module whose result
    enters the first block, so that a span that brings its own state need not embed ("" = none).
    merge: path of attention's output projection in a block ("" = the ``delta`` leaf). heads:
    config field with the number of query heads (with dots: from the whole config);
    ``num_key_value_heads`` is read beside it ("" = no head can be skipped by itself). whole_heads:
    attention takes a fused projection apart at fixed places, so it must come in full width.
    neurons: the linear layers of the feed-forward network, for hosts whose ffn can be split.
    experts: path in a block of experts that the host has by itself; of a block without them, the
    neurons count. final: path from the base model of the norm after the last block ("" = there is
    none, None = the record does not say).
    """

    name: str
    blocks: str
    attention: tuple[Leaf, ...]
    ffn: tuple[Leaf, ...]
    cross: tuple[Leaf, ...] = ()
    mask: str = "attention_mask"
    mask_method: str | None = None
    tuple_output: bool = False
    hideable: bool = True
    embeddings: str = ""
    merge: str = ""
    heads: str = "num_attention_heads"
    whole_heads: bool = False
    neurons: Neurons | None = None
    experts: str = ""
    final: str | None = None


@dataclass(frozen=True)
class Family:
    """A host family: which ``config.model_type`` values it serves and its stacks.

    refuse: config fields with a value that this record cannot serve, and why. whole: a model must
    have all of the stacks (others have an encoder alone, too).
    """

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    refuse: tuple[tuple[str, object, str], ...] = ()
    whole: bool = False
