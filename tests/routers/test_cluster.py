"""Clusters of inputs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hosts_table import BY_NAME
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from tiny import stacked

import turnout
from turnout import UserError
from turnout.routers.cluster import balanced_labels, best_count

HOST = BY_NAME["bert"]


def rows(count: int = 120, spread: float = 0.1, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Points about three centres, and which centre each has; the last is rare."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(3, width))
    which = draw.choice(3, count, p=[0.5, 0.35, 0.15])
    found = centres[which] + spread * draw.normal(size=(count, width))
    return found.astype(np.float32), which


def router(**more: Any) -> Any:
    model = turnout.install(HOST.build(), [{"kind": "cluster", "adapters": 3, **more}])
    return model.turnout.all_routers()[0]


@pytest.mark.parametrize("method", ["k-means", "mixture"])
def test_clusters_that_are_there_are_found(method: str) -> None:
    found, which = rows()
    made = router(method=method)
    said = made.fit(found)
    unit = made.weight_BU(torch.from_numpy(found)).argmax(1).numpy()
    for cluster in range(3):
        assert len(set(unit[which == cluster])) == 1
    assert len(set(unit)) == 3
    assert "balance 0." in said and "silhouette 0." in said


def test_balanced_clusters_have_one_size() -> None:
    found, _ = rows(121)
    made = router(method="balanced")
    sizes = made.fit(found).split(" of ")[1].split(" rows")[0].split(", ")
    assert all(36 <= int(size) <= 45 for size in sizes)
    near = made.weight_BU(torch.from_numpy(found)).argmax(-1).bincount(minlength=3)
    assert near.tolist() == [int(size) for size in sizes]  # as inputs are routed in use
    labels = balanced_labels(found, found[:3])
    assert sorted(np.bincount(labels).tolist()) == [40, 40, 41]


@pytest.mark.parametrize("method, spread", [("k-means", 0.1), ("mixture", 2.0)])
def test_an_input_between_clusters_is_served_by_both(method: str, spread: float) -> None:
    found, _ = rows(spread=spread)
    made = router(method=method, top=2, temperature=5.0)
    made.fit(found)
    centre = made.centre.float()
    half = made.weight_BU((centre[:1] + centre[1:2]) / 2)[0]
    assert half[:2].min() > 0.01 and half[2] == 0
    assert float(half.sum()) == pytest.approx(1.0)
    one = router(method=method, top=1)
    one.fit(found)
    assert one.weight_BU(one.centre.float()).tolist() == torch.eye(3).tolist()


def test_weights_of_a_mixture_are_its_posterior() -> None:
    found, _ = rows(spread=1.0)
    made = router(method="mixture", top=3)
    made.fit(found)
    theirs = GaussianMixture(3, covariance_type="diag", reg_covar=1e-3, random_state=0)
    expected = theirs.fit(found.astype(np.float64)).predict_proba(found.astype(np.float64))
    ours = made.weight_BU(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_the_criterion_finds_how_many_there_are() -> None:
    count, table = best_count(rows(300)[0], range(1, 7))
    assert count == 3 and len(table) == 6


def test_centres_that_were_never_fitted_are_told_of(tmp_path: Path) -> None:
    model = turnout.install(HOST.build(), [{"kind": "cluster", "adapters": 3}])
    with pytest.warns(UserWarning, match=r"not fitted: its centres are random. Call turnout\.prep"):
        model(**HOST.inputs())
    rows = [{"input_ids": [3 + n, 9, 4, 40 - n], "attention_mask": [1] * 4} for n in range(12)]
    turnout.prepare(model, datasets.Dataset.from_list(rows), stacked, say=str)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**HOST.inputs())
        turnout.load(tmp_path)(**HOST.inputs())


def test_a_model_in_training_is_fitted_as_it_is_used() -> None:
    rows = [{"input_ids": [3 + n, 9, 4, 40 - n], "attention_mask": [1] * 4} for n in range(12)]
    model = turnout.install(HOST.build(), [{"kind": "cluster", "adapters": 3, "hold_first": 1}])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    centres = []
    for training in (True, False):
        turnout.prepare(model.train(training), datasets.Dataset.from_list(rows), stacked, say=str)
        assert model.training is training
        centres.append(model.turnout.all_routers()[0].centre.clone())
    assert torch.equal(*centres)


def test_all_blocks_use_the_same_cluster() -> None:
    model = turnout.install(HOST.build(), [{"kind": "cluster", "hold_first": 1}])
    with torch.no_grad(), turnout.trace() as trace:
        model(**HOST.inputs())
    one, two = (route.weight_BTU for route in trace.values())
    assert torch.equal(one, two) and one.shape == (3, 1, 4)


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(UserError, match="cannot fit 3 clusters on 2 rows"):
        router().fit(rows(2)[0])
    spoilt = rows()[0]
    spoilt[3, 1] = np.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        router().fit(spoilt)
    with pytest.raises(UserError, match=r"rows of pooled states, \(N, 32\), got"):
        router().fit(np.zeros((9, 7), dtype=np.float32))
    for counts in ([1, 8], [0, 1], []):
        with pytest.raises(UserError, match="can be counted from 1 to the number of rows, 5"):
            best_count(np.eye(5), counts)
    with pytest.raises(UserError, match="NaN or infinity"):
        best_count(np.full((5, 2), np.nan), [2])
    with pytest.raises(UserError, match="leave it out at site head"):
        turnout.install(HOST.build(), [{"kind": "cluster", "site": "head", "most": 3}])
    with pytest.raises(UserError, match="top: 3 clusters cannot serve"):
        turnout.install(HOST.build(), [{"kind": "cluster", "most": 2, "top": 3}])
    with pytest.raises(UserError, match="number of experts is this host's own"):
        spec = {"kind": "cluster", "site": "expert", "most": 3}
        turnout.install(BY_NAME["mixtral"].build(), [spec])
    with pytest.raises(UserError, match="top 5 is more than the 3 units"):
        router(top=5)


def test_many_rows_are_fitted_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.routers.cluster.MANY", 100)
    found, which = rows(300)
    made = router()
    made.fit(found)
    unit = made.weight_BU(torch.from_numpy(found)).argmax(1).numpy()
    assert [len(set(unit[which == cluster])) for cluster in range(3)] == [1, 1, 1]
    assert len(set(unit)) == 3
    report = made.found
    assert sorted(report["sizes"]) == sorted(np.bincount(which).tolist())
    share = np.bincount(which) / 300
    assert report["balance"] == pytest.approx(-(share * np.log(share)).sum() / np.log(3))
    assert report["silhouette"] == pytest.approx(silhouette_score(found, which), abs=1e-5)
