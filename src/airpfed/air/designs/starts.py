"""Beams from which a one-target design begins: the weighted dominant eigenvector, then fixed draws."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Complex, Float

from airpfed.air.designs.hinge import SingleTargetProblem


def beams(problem: SingleTargetProblem, starts: int) -> Iterator[Complex[np.ndarray, "B M"]]:
    """`starts` beams a block, the first the dominant one, the others random combinations of the channels.

    The combination's coefficients are CN(0, 1) from a fixed seed and the same in every block, each channel with the
    weight that it has in the dominant beam; a block's starts do not depend on its batch. ValueError below one start.
    """
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    yield dominant(problem)
    rng = torch.Generator().manual_seed(0)
    pulled = problem.channels * pull(problem)[:, :, None]
    for _ in range(starts - 1):
        draw = torch.randn(pulled.shape[1], dtype=torch.complex128, generator=rng).numpy()
        yield draw @ pulled


def pull(problem: SingleTargetProblem) -> Float[np.ndarray, "B K"]:
    """w_k / ||h_k||^2 over its largest: weak devices count more than strong ones."""
    parts = problem.channels.view(np.float64)
    ratio = problem.targets / np.maximum(np.vecdot(parts, parts), 1e-300)
    scaled: Float[np.ndarray, "B K"] = ratio / np.maximum(ratio.max(1, keepdims=True), 1e-300)
    return scaled


def dominant(problem: SingleTargetProblem) -> Complex[np.ndarray, "B M"]:
    """Unit dominant eigenvector of sum_k (w_k / ||h_k||^2)^2 h_k h_k^H."""
    pulled = problem.channels * pull(problem)[:, :, None]
    vectors: Complex[np.ndarray, "B M M"] = np.linalg.eigh(pulled.swapaxes(1, 2) @ pulled.conj()).eigenvectors
    return vectors[:, :, -1]
