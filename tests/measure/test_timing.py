from __future__ import annotations

import sys
import time

import pytest
import torch

from turnout.measure.timing import interleaved, peak_memory


def test_every_arm_runs_once_a_round_and_the_warmup_is_dropped():
    calls: list[str] = []
    arms = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(arms, repeats=6, warmup=2)
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 6, "b": 6, "c": 6}
    by_round = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(by_round) == 8 and all(sorted(names) == ["a", "b", "c"] for names in by_round)
    assert len({tuple(names) for names in by_round}) > 1


def test_seconds_are_seconds():
    seconds = interleaved({"short": lambda: None, "long": lambda: time.sleep(0.02)}, repeats=2)
    assert all(run >= 0.02 for run in seconds["long"])
    assert max(seconds["short"]) < 0.02


def test_no_rounds_is_refused():
    with pytest.raises(ValueError, match="repeats"):
        interleaved({}, repeats=0)


@pytest.mark.skipif(sys.platform != "linux", reason="the resident peak is read from /proc")
def test_peak_counts_memory_that_was_freed_again():
    size = 64 * 2**20
    idle = peak_memory(lambda: None)
    if idle is None:
        pytest.skip("this system does not let a process reset its peak")
    busy = peak_memory(lambda: torch.ones(size // 4))
    after = peak_memory(lambda: None)
    assert busy is not None and after is not None
    assert busy - idle > 0.8 * size
    assert busy - after > 0.8 * size
