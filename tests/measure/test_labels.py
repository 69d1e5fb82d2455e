from __future__ import annotations

import numpy as np

from turnout.measure.labels import place

BOX = (0.0, 0.0, 200.0, 200.0)
NOTHING = np.zeros((0, 2))


def frames(points: list, sizes: list, obstacles: np.ndarray = NOTHING) -> list:
    places = place(points, sizes, obstacles, BOX)
    return [
        (x + p.dx - w / 2, y + p.dy - h / 2, x + p.dx + w / 2, y + p.dy + h / 2)
        for (x, y), (w, h), p in zip(points, sizes, places, strict=True)
    ]


def test_free_space_takes_the_first_choice():
    assert place([(100, 100)], [(20, 10)], NOTHING, BOX) == [(-15.0, 10.0)]


def test_labels_of_near_points_do_not_overlap():
    (a, b) = frames([(100, 100), (104, 102)], [(40, 12), (40, 12)])
    assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_line_in_the_way_is_avoided():
    line = np.stack([np.linspace(0, 200, 400), np.linspace(200, 0, 400)], axis=1)
    (frame,) = frames([(100, 100)], [(20, 10)], line)
    x, y = line.T
    assert not ((x > frame[0]) & (x < frame[2]) & (y > frame[1]) & (y < frame[3])).any()


def test_labels_stay_inside():
    (frame,) = frames([(2, 198)], [(40, 12)])
    assert frame[0] >= 0 and frame[3] <= 200
