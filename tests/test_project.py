"""Promises that the files of the project keep, whoever edits them."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ ", re.MULTILINE)
# A model folder or a run of another person must never run code.
FORBIDDEN = ("pickle", "torch.load(", "trust_remote_code=True")


PUBLIC = re.compile(r"import (\w+) as \1$", re.MULTILINE)


@pytest.fixture(scope="module")
def readmes() -> tuple[str, str]:
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    return english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")


def test_readmes_have_the_same_headings(readmes: tuple[str, str]) -> None:
    levels = [HEADING.findall(FENCE.sub("", text)) for text in readmes]
    assert levels[0] == levels[1], "README.md and README.zh-CN.md differ in number or level"


def test_readmes_show_the_same_code(readmes: tuple[str, str]) -> None:
    english, chinese = (FENCE.findall(text) for text in readmes)
    assert english == chinese, "a code block of README.md differs from its twin in README.zh-CN.md"


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "src").rglob("*.py")),
    ids=lambda p: "/".join(p.parts[p.parts.index("turnout") + 1 :]),
)
def test_no_code_can_arrive_with_data(path: Path) -> None:
    source = io.StringIO(path.read_text(encoding="utf-8"))
    skipped = (tokenize.COMMENT, tokenize.STRING)
    code = "".join(
        t.string for t in tokenize.generate_tokens(source.readline) if t.type not in skipped
    )
    found = [word for word in FORBIDDEN if word in code]
    assert not found, f"{path.relative_to(ROOT)} uses {', '.join(found)}"


def test_every_public_name_is_documented() -> None:
    public = PUBLIC.findall((ROOT / "src/turnout/__init__.py").read_text(encoding="utf-8"))
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    missing = [name for name in public if not re.search(rf"turnout\.{name}\b", page)]
    assert public and not missing, f"docs/api.md does not name {', '.join(missing)}"
