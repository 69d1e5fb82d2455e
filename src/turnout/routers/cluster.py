"""Clusters of inputs: each unit serves a region of the space of pooled states.

Centres are fitted on the training data before training: k-means, balanced k-means, or a Gaussian
mixture, on the pooled, normalised state that enters the first served block. In inference an input
goes to the nearest, or to the ``top`` nearest, weighted by a softmax over negative squared
distances (k-means) or by the posterior (mixture), so that an input between clusters is served by
both. With one module a cluster, trained on its own part of the data, this is cluster-branch-train
(c-BTM, Gururangan et al. 2023, arXiv 2303.14177): their ensemble weight w_j is our weight, their
temperature T is ``temperature``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from turnout.errors import UserError
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, masked_mean

MANY = 10_000  # rows above which k-means takes mini-batches
STEPS = 200  # of balancing
SAMPLE = 2_000  # rows for the silhouette


class ClusterConfig(RouterConfig):
    """method: how centres are fitted; ``balanced`` makes clusters that take as many inputs each, by
    a price on those that would take more. most: a recipe makes as many units, of 2 to this, as the
    Bayesian information criterion finds clusters in the training data (of experts that share
    neurons, only numbers that divide them are tried); None = as many as ``adapters`` or ``experts``
    says. top: clusters that serve an input. temperature: of their weights, in units of the mean
    squared distance of an input to its centre. seed: of the fit."""

    kind: Literal["cluster"] = "cluster"
    site: Literal["adapter", "expert", "head", "output"] = "adapter"
    granularity: Literal["sequence"] = "sequence"
    method: Literal["k-means", "balanced", "mixture"] = "k-means"
    most: Annotated[int, Field(ge=2)] | None = None
    top: Annotated[int, Field(gt=0)] = 1
    temperature: Annotated[float, Field(gt=0.0)] = 0.3
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _counts(self) -> ClusterConfig:
        if self.most is not None and self.site == "head":
            raise ValueError("most: the number of heads is the host's; leave it out at site head")
        if self.most is not None and self.top > self.most:
            raise ValueError(
                f"top: {self.top} clusters cannot serve an input where most is {self.most}"
            )
        return self

    def with_units(self, count: int) -> ClusterConfig:
        """The same with so many units, for good."""
        name = "experts" if self.site == "expert" else "adapters"
        return self.model_copy(update={name: count, "most": None})


class ClusterRouter(Router):
    """Sends a sequence to the units of its nearest clusters, the same at every site."""

    Config: ClassVar[type[RouterConfig]] = ClusterConfig
    weighs = True
    fits = True
    config: ClusterConfig
    centre: Tensor
    precision: Tensor
    bias: Tensor
    fitted: Tensor

    def __init__(self, config: ClusterConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        if len({site.stack for site in sites}) > 1:
            raise UserError("router 'cluster' serves one stack; set `stack: encoder` or `decoder`")
        counts = {site.units for site in sites}
        if len(counts) > 1:
            raise UserError("router 'cluster' needs sites with as many units each")
        (self.count,) = counts
        if config.top > self.count:
            raise UserError(
                f"router 'cluster': top {config.top} is more than the {self.count} units of a site"
            )
        generator = torch.Generator().manual_seed(config.seed)
        centre = F.layer_norm(
            torch.randn(self.count, host.hidden, generator=generator), (host.hidden,)
        )
        self.register_buffer("centre", centre)
        # distance = sum precision (x - centre)^2 + bias, in units in which a softmax makes sense
        self.register_buffer("precision", torch.full((self.count, host.hidden), 1 / host.hidden))
        self.register_buffer("bias", torch.zeros(self.count))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._asked = False  # once is enough: on a GPU it would wait for the device each time

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        first = next(other for other in self.sites if other.stack == site.stack)
        if site is first:
            self._check_fitted()
            pooled_BD = self.embed(hidden_BTD, flow.mask_BT(site))
            flow.memory[(first.key, "weight")] = self.weight_BU(pooled_BD)
        return Route(site, flow.memory[(first.key, "weight")][:, None])

    def _check_fitted(self) -> None:
        """Warn where inputs go to centres that were drawn at random."""
        if not self._asked and not bool(self.fitted):
            warnings.warn(
                "router 'cluster' was not fitted: its centres are random. Call turnout.prepare("
                "model, rows, collate) before training, as `turnout train` does",
                stacklevel=2,
            )
        self._asked = True

    @staticmethod
    def embed(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """What is clustered: the mean over real tokens, normalised, (B, D), float32."""
        pooled_BD = masked_mean(hidden_BTD, mask_BT).detach()
        return F.layer_norm(pooled_BD, pooled_BD.shape[-1:])

    def weight_BU(self, pooled_BD: Tensor) -> Tensor:
        """Weights of the nearest clusters, 0 for the others; they add up to 1."""
        distance_BU = self._distance_BU(pooled_BD)
        near = distance_BU.argsort(dim=-1, stable=True)[:, : self.config.top]
        logit_BU = torch.full_like(distance_BU, -torch.inf)
        logit_BU.scatter_(1, near, -distance_BU.gather(1, near))
        return logit_BU.softmax(-1).float()

    def _distance_BU(self, pooled_BD: Tensor) -> Tensor:
        """How far each row is from each cluster, bias included, in double precision where the
        device has it."""
        wide = torch.float32 if pooled_BD.device.type == "mps" else torch.float64
        rows, centre, scale = (x.to(wide) for x in (pooled_BD, self.centre, self.precision))
        # sum_d p (x - c)^2, multiplied out: no (B, U, D) is ever held
        distance_BU = rows.square() @ scale.t() - 2 * rows @ (centre * scale).t()
        return distance_BU + (centre.square() * scale).sum(-1) + self.bias.to(wide)

    def _balance(self, pooled_ND: np.ndarray) -> None:
        """Raise the bias of clusters that take too many of the rows, until they take alike."""
        distance_NU = self._distance_BU(torch.from_numpy(pooled_ND).to(self.centre.device))
        price_U = torch.zeros_like(distance_NU[0])
        reach = float(distance_NU.std())
        for step in range(STEPS):
            taken_U = F.one_hot((distance_NU + price_U).argmin(-1), self.count).double().mean(0)
            price_U += reach * (1 - step / STEPS) * (taken_U - 1 / self.count)
        self.bias.copy_(price_U)

    def fit(self, pooled_ND: np.ndarray) -> str:
        """Fit the centres on embedded rows (N, D); tells their quality. Raises UserError for fewer
        rows than clusters, or rows that are not finite."""
        self._fit(pooled_ND)
        nearest_NU = self.weight_BU(torch.from_numpy(pooled_ND).to(self.centre.device))
        self.found = found = self.quality(pooled_ND, nearest_NU.argmax(-1).cpu().numpy())
        sizes = ", ".join(f"{size:,}" for size in found["sizes"])
        close = found["silhouette"]
        return f"clusters of {sizes} rows: balance {found['balance']:.3f}" + (
            "" if close is None else f", silhouette {close:.3f}"
        )

    def quality(self, pooled_ND: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
        """sizes; balance: the entropy of the sizes, 1 = all alike; silhouette, of a sample."""
        sizes = np.bincount(labels_N, minlength=self.count)
        share = sizes[sizes > 0] / sizes.sum()
        balance = float(-(share * np.log(share)).sum() / np.log(max(2, self.count)))
        some = np.random.default_rng(self.config.seed).permutation(len(labels_N))[:SAMPLE]
        several = 1 < len(set(labels_N[some])) < len(some)
        close = float(silhouette_score(pooled_ND[some], labels_N[some])) if several else None
        return {"sizes": sizes.tolist(), "balance": balance, "silhouette": close}

    def _fit(self, pooled_ND: np.ndarray) -> None:
        config = self.config
        check_enough(self.count, len(pooled_ND))
        check_rows(pooled_ND, self.host.hidden)
        if config.method == "mixture":
            self._fit_mixture(pooled_ND)
        else:
            self._fit_means(pooled_ND)
        self.fitted.fill_(True)

    def _fit_means(self, pooled_ND: np.ndarray) -> None:
        config = self.config
        cls: Any = MiniBatchKMeans if len(pooled_ND) > MANY else KMeans
        found = cls(self.count, n_init=4, random_state=config.seed).fit(pooled_ND)
        centre, labels = found.cluster_centers_, found.labels_
        if config.method == "balanced":
            for _ in range(10):
                labels = balanced_labels(pooled_ND, centre)
                centre = np.stack([pooled_ND[labels == u].mean(0) for u in range(self.count)])
        near = ((pooled_ND - centre[labels]) ** 2).sum(1).mean()
        self.centre.copy_(torch.from_numpy(centre))
        self.precision.fill_(1.0 / max(float(near) * config.temperature, 1e-9))
        self.bias.zero_()
        if config.method == "balanced":
            self._balance(pooled_ND)

    def _fit_mixture(self, pooled_ND: np.ndarray) -> None:
        """Diagonal Gaussians: the softmax of our negative distances is the posterior."""
        found: Any = GaussianMixture(
            self.count, covariance_type="diag", reg_covar=1e-3, random_state=self.config.seed
        ).fit(pooled_ND.astype(np.float64))
        precision = found.precisions_
        self.centre.copy_(torch.from_numpy(found.means_))
        self.precision.copy_(torch.from_numpy(precision / 2))
        self.bias.copy_(
            torch.from_numpy(-np.log(found.weights_ + 1e-12) - 0.5 * np.log(precision).sum(1))
        )


def balanced_labels(pooled_ND: np.ndarray, centre_UD: np.ndarray) -> np.ndarray:
    """The nearest cluster that has room, those served first who would lose most; all clusters end
    with as many rows, but for one."""
    count, units = len(pooled_ND), len(centre_UD)
    distance_NU = cdist(pooled_ND, centre_UD, "sqeuclidean")
    ranked = np.sort(distance_NU, 1)
    urgency = ranked[:, 0] - ranked[:, min(1, units - 1)]
    room = np.full(units, count // units)
    room[: count % units] += 1
    labels = np.empty(count, dtype=np.int64)
    for row in np.argsort(urgency, kind="stable"):
        for unit in np.argsort(distance_NU[row], kind="stable"):
            if room[unit] > 0:
                labels[row], room[unit] = unit, room[unit] - 1
                break
    return labels


def check_rows(pooled_ND: np.ndarray, width: int | None = None) -> None:
    """Raise UserError for rows that no cluster can be fitted to. width: what they must have."""
    if pooled_ND.ndim != 2 or (width is not None and pooled_ND.shape[1] != width):
        raise UserError(
            f"clusters are fitted to rows of pooled states, (N, {width or 'D'}), got "
            f"{pooled_ND.shape}"
        )
    if not len(pooled_ND):
        raise UserError("clusters need at least one row")
    if not np.isfinite(pooled_ND).all():
        raise UserError("router 'cluster': the host's states hold NaN or infinity")


def check_enough(clusters: int, rows: int, what: str = "rows") -> None:
    """Raise UserError for fewer rows than clusters. what: the rows are, for the message."""
    if rows < clusters:
        raise UserError(f"router 'cluster' cannot fit {clusters} clusters on {rows} {what}")


def best_count(
    pooled_ND: np.ndarray, counts: Sequence[int], seed: int = 0
) -> tuple[int, dict[int, float]]:
    """The one of some numbers of clusters with the lowest Bayesian information criterion, and the
    table. Raises UserError for no number, one below 1 or above the number of rows, and rows that
    are not finite."""
    check_rows(pooled_ND)
    if not counts or not 1 <= min(counts) <= max(counts) <= len(pooled_ND):
        raise UserError(
            f"clusters can be counted from 1 to the number of rows, {len(pooled_ND)}; asked for "
            f"{', '.join(map(str, counts)) or 'no number'}"
        )
    rows = pooled_ND.astype(np.float64)
    table = {}
    for count in counts:
        mixture = GaussianMixture(
            count, covariance_type="diag", reg_covar=1e-3, random_state=seed
        ).fit(rows)
        table[count] = float(mixture.bic(rows))
    return min(table, key=lambda count: table[count]), table
