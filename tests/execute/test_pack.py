"""Packs: rows keep their state, memory and length however they are packed anew."""

import numpy as np
import torch

from turnout.execute.pack import Pack, Pool, join

TOKENS = frozenset({"logits"})


def pack(first: int, lengths: list[int]) -> Pack:
    """Rows first, first + 1, ...: each token's state is row + place / 100, padding is -1."""
    rows = np.arange(first, first + len(lengths))
    hidden_BTD = torch.full((len(lengths), max(lengths), 2), -1.0)
    for place, length in enumerate(lengths):
        hidden_BTD[place, :length] = (rows[place] + torch.arange(length) / 100)[:, None]
    ids_BT = (hidden_BTD[:, :, 0] * 100).round().long()
    memory = {("a", "logits"): hidden_BTD[:, :, :1] * 2, ("a", "alive"): torch.from_numpy(rows)}
    return Pack(rows, np.array(lengths), hidden_BTD, ids_BT, torch.from_numpy(rows), memory)


def check(found: Pack) -> None:
    """Every row still has what belongs to it, and T is the longest row."""
    assert found.longest == found.lengths.max()
    assert found.keys_B.tolist() == found.rows.tolist()
    assert found.memory[("a", "alive")].tolist() == found.rows.tolist()
    assert found.mask_BT.sum(1).tolist() == found.lengths.tolist()
    for place, (row, length) in enumerate(zip(found.rows, found.lengths, strict=True)):
        expected = row + torch.arange(int(length)) / 100
        torch.testing.assert_close(found.hidden_BTD[place, :length, 0], expected)
        assert found.ids_BT[place, :length].tolist() == list(range(100 * row, 100 * row + length))
        logits = found.memory[("a", "logits")][place, :length, 0]
        torch.testing.assert_close(logits, 2 * expected)


def test_a_pack_taken_whole_is_not_copied() -> None:
    whole = pack(0, [5, 4])
    assert join([(whole, np.array([0, 1]))], TOKENS) is whole


def test_joined_rows_keep_what_is_theirs() -> None:
    parts = [(pack(0, [9, 7, 3]), np.array([1, 2])), (pack(5, [8, 2]), np.array([1]))]
    found = join(parts, TOKENS)
    assert found.rows.tolist() == [1, 2, 6]
    assert found.longest == 7
    check(found)
    check(join([(pack(0, [9, 7, 3]), np.array([2]))], TOKENS))


def test_a_pool_loses_no_row_and_mixes_only_what_is_thin() -> None:
    generator = np.random.default_rng(0)
    pool = Pool(36, TOKENS)
    packs = [pack(10 * i, sorted(generator.integers(1, 12, 6), reverse=True)) for i in range(8)]
    packs.sort(key=lambda one: -one.longest)
    chosen = [generator.random(6) < 0.25 for _ in packs]
    chosen[3][:] = True
    chosen[5][:] = False
    found = [
        full for one, which in zip(packs, chosen, strict=True) for full in pool.add(one, which)
    ]
    found += pool.flush()
    assert pool.flush() == []
    for one in found:
        check(one)
    rows = np.concatenate([one.rows for one in found])
    wanted = np.concatenate([one.rows[w] for one, w in zip(packs, chosen, strict=True)])
    assert sorted(rows) == sorted(wanted)
    assert any(one is packs[3] for one in found)
    assert max(len(one.rows) for one in found) > 1
    mixed = [one for one in found if len({int(row) // 10 for row in one.rows}) > 1]
    assert mixed and all(len(one.rows) * one.longest <= 36 for one in mixed)
