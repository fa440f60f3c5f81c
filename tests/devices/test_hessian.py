"""Hessian products against differences of gradients in float64, and the eigenvalues they give."""

from pathlib import Path

import pytest
import torch

from airpfed.devices.full_gradients import SampleGroup, full_gradients, group_samples
from airpfed.devices.hessian import curvature, dimension, hessian_products, task_mask
from airpfed.model.layout import Vectors
from airpfed.theory.inner_product import Stack, weighted_average, weights_of
from airpfed.training.setup import TrainingSetup
from support.experiments import experiment, in_double, random_vectors

BATCH = "devices.batch_size=4"


def task_gradient(made: TrainingSetup, values: Vectors, task: int) -> torch.Tensor:
    """grad F_n in (W_s, W_p,n, own parts), those scaled as `product` scales them."""
    clients = made.clients
    counts = torch.tensor([float(len(shard)) for shard in clients.shards], dtype=torch.float64)
    rows = full_gradients(clients, values, 100, 5).gradient
    mine = (clients.task_of == task).double()
    weights = weights_of(counts * mine + 1e-30, clients.task_of, len(clients.classes))
    mean = weighted_average(weights, Stack(rows.shared, rows.personal, rows.local))
    share = counts / counts[clients.task_of == task].sum()
    own = rows.local * share.sqrt()[:, None] * mine[:, None]
    return torch.cat([mean.shared, mean.personal[task], own.flatten()])


def moved(made: TrainingSetup, values: Vectors, task: int, way: torch.Tensor, step: float) -> Vectors:
    clients, out = made.clients, {scope: value.clone() for scope, value in values.items()}
    d_s, d_p, d_o = (clients.layout.size(scope) for scope in ("global", "task", "device"))
    counts = torch.tensor([float(len(shard)) for shard in clients.shards], dtype=torch.float64)
    share = counts / counts[clients.task_of == task].sum()
    out["global"][0] += step * way[:d_s]
    out["task"][task] += step * way[d_s : d_s + d_p]
    out["device"] += step * way[d_s + d_p :].view(-1, d_o) / share.sqrt()[:, None] if d_o else 0.0
    return out


@pytest.mark.parametrize(
    ("kind", "method"), [("llama", "airpfed"), ("bert", "airpfed"), ("llama", "feddpa"), ("llama", "ffa")]
)
def test_products_are_differences_of_gradients(kind: str, method: str, request: pytest.FixtureRequest) -> None:
    """Both tasks at once, each along its own direction; group by group they add up to x H x."""
    overrides = (f"adapters.method={method}", "adapters.layers=[0, 3]", "tasks.colours.samples_per_device=4")
    made = experiment(request.getfixturevalue(f"{kind}_settings"), BATCH, *overrides)
    in_double(made.clients)
    clients = made.clients
    values = {scope: value.double() for scope, value in random_vectors(made).items()}
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(2, dimension(clients), generator=rng, dtype=torch.float64) * task_mask(clients)
    dealt = [SampleGroup(k, rows) for k in range(5) for rows in group_samples(clients, k, 3)]
    found, along = hessian_products(clients, values, dealt, x, 4)
    for task in (0, 1):
        sides = [task_gradient(made, moved(made, values, task, x[task], step), task) for step in (3e-5, -3e-5)]
        wanted = (sides[0] - sides[1]) / 6e-5
        assert float((found[task] - wanted).norm() / wanted.norm()) < 1e-5
        mine = [(g, v) for g, v in zip(dealt, along, strict=True) if clients.task_of[g.device] == task]
        total = sum(len(g.rows) for g, _ in mine)
        bent = sum(v * len(g.rows) for g, v in mine) / total
        assert bent == pytest.approx(float(x[task] @ found[task]), rel=1e-8) or method == "feddpa"


def test_beta_is_the_largest_eigenvalue_of_the_steeper_task(small_settings: Path) -> None:
    """Many steps reach it: the product along the vector gives it back; fewer stay below, and the interval covers it."""
    made = experiment(small_settings, BATCH, "adapters.layers=[2]", "tasks.*.samples_per_device=4")
    in_double(made.clients)
    values = {scope: value.double() for scope, value in random_vectors(made).items()}
    full = curvature(made.clients, values, 0, 4, 14, 8)
    again = curvature(made.clients, values, 0, 4, 20, 8)
    assert full.beta == pytest.approx(again.beta, rel=1e-4) and full.beta > 0
    few = curvature(made.clients, values, 0, 4, 3, 8)
    assert few.beta <= full.beta * (1 + 1e-6) and few.low == few.beta
    assert few.high >= full.beta
    part = curvature(made.clients, values, 2, 1, 6, 8)
    assert part.low < part.beta < part.high, "half of the samples: an interval over samples"
