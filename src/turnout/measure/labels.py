"""Put names beside points so that they hide neither points, lines nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# preferred places round a point: (horizontal, vertical) direction, best first
SIDES = ((-1, 1), (1, -1), (1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
REACH = (5.0, 9.0, 16.0)  # from the point to the label


class Place(NamedTuple):
    """Offset of the middle of a label from its point."""

    dx: float
    dy: float


def place(
    points_P2: Sequence[tuple[float, float]],
    sizes_P2: Sequence[tuple[float, float]],
    obstacles_O2: np.ndarray,
    box: tuple[float, float, float, float],
) -> list[Place]:
    """One place for each point's label, chosen in turn: the one that covers the least.

    All in one unit (typographic points): `sizes` are widths and heights of the labels, `obstacles`
    are samples of what is drawn, `box` is (left, bottom, right, top) of the axes.
    """
    taken: list[tuple[float, float, float, float]] = []
    chosen: list[Place] = []
    for (x, y), (width, height) in zip(points_P2, sizes_P2, strict=True):
        options = [
            Place(h * (reach + width / 2), v * (reach + height / 2))
            for reach in REACH
            for h, v in SIDES
        ]
        frames = [_frame(x + p.dx, y + p.dy, width, height) for p in options]
        costs = [
            _covered(frame, obstacles_O2)
            + 40 * sum(_overlap(frame, other) for other in taken)
            + 200 * (not _inside(frame, box))
            + 0.1 * number
            for number, frame in enumerate(frames)
        ]
        best = int(np.argmin(costs))
        chosen.append(options[best])
        taken.append(frames[best])
    return chosen


def _frame(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _covered(frame: tuple[float, float, float, float], obstacles_O2: np.ndarray) -> int:
    x, y = obstacles_O2[:, 0], obstacles_O2[:, 1]
    return int(((x > frame[0]) & (y > frame[1]) & (x < frame[2]) & (y < frame[3])).sum())


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(frame: tuple[float, float, float, float], box: tuple[float, ...]) -> bool:
    return frame[0] >= box[0] and frame[1] >= box[1] and frame[2] <= box[2] and frame[3] <= box[3]
