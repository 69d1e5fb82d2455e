"""What our own processes keep: memory, where the C library can do it, and products."""

import os
import platform
import subprocess
import sys

import pytest

from turnout import allocator

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


def test_more_products_are_remembered_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setattr(allocator, "keep_memory", lambda: False)
    monkeypatch.delenv(name, raising=False)
    allocator.keep()
    assert os.environ[name] == str(allocator.PRODUCTS)
    monkeypatch.setenv(name, "7")
    allocator.keep()
    assert os.environ[name] == "7"
