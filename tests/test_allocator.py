"""Freed memory stays in the process, where the C library can do it."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource
import sys
import torch
from turnout.allocator import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
for _ in range(30):
    torch.ones(16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", COUNT, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("plain") / 10
