"""The frontier of a results.json as one SVG file that stands alone: the picture of the README.

python benchmarks/picture.py RUN/results.json docs/images/frontier.svg
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from turnout.files import write_text
from turnout.measure.plots import frontier_svg
from turnout.measure.results import load
from turnout.measure.style import CSS


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    light = re.search(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    assert light is not None
    svg = frontier_svg(load(source))
    head = re.sub(
        r"^<svg ",
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ',
        svg,
    )
    style = f"<style>svg {{{light[1]} background: var(--card); }}</style>"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, re.sub(r">", f">{style}", head, count=1) + "\n")


if __name__ == "__main__":
    main()
