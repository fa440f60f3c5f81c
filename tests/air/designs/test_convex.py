"""Uniform forcing against convex programming, where cvxpy is installed."""

import runpy
from pathlib import Path

import pytest
import torch

from airpfed.air.designs.forcing import uniform_forcing

CONVEX = Path(__file__).parents[3] / "benchmarks" / "convex.py"


def test_within_two_percent_of_successive_convex_approximation(make_slot):
    pytest.importorskip("cvxpy")
    oracle = runpy.run_path(str(CONVEX))
    problem = make_slot(6, 8, 20)
    ours = uniform_forcing(problem).receiver.abs().square().sum((1, 2))
    ratios = []
    for block, h in enumerate(problem.h * problem.power_limit.sqrt() / problem.weights[0]):
        scale = h.abs().square().mean().sqrt()
        unit = (h / scale).numpy()
        m = torch.from_numpy(oracle["sca"](unit, oracle["eigenvector"](unit)))
        assert (m.conj() @ (h / scale)).abs().min() >= 1 - 1e-9
        ratios.append(ours[block] * scale**2 / m.abs().square().sum())
    assert 0.5 < torch.stack(ratios).log().mean().exp() < 1.02
