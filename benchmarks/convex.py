"""Uniform forcing by convex programming, the reference for the quality and the speed of `uniform_forcing`.

    minimise  ||m||^2   subject to   |m^H h_k| >= 1 for every device k,

for one block of channels h (M, K), scaled by sqrt(P_k) / w_k. Needs cvxpy, which the package itself does not need.
"""

import cvxpy as cp
import numpy as np

Array = np.ndarray


def scale_to_feasible(m: Array, h: Array) -> Array:
    """Scale a receiver so that the gain of its weakest device is exactly 1."""
    return m / np.abs(m.conj() @ h).min()


def eigenvector(h: Array) -> Array:
    """The dominant eigenvector of sum_k h_k h_k^H / ||h_k||^4, scaled to be feasible."""
    lifted = h / (np.abs(h) ** 2).sum(0)
    return scale_to_feasible(np.linalg.eigh(lifted @ lifted.conj().T)[1][:, -1], h)


def sca(h: Array, m: Array, tolerance: float = 1e-4, rounds: int = 100) -> Array:
    """Successive convex approximation from m until the relative change of ||m||^2 is below `tolerance`.

    The constraint around z is 2 Re(z^H h_k h_k^H m) >= 1 + |z^H h_k|^2. The program is real, in [Re m; Im m], and is
    compiled once.
    """
    antennas, devices = h.shape
    r = cp.Variable(2 * antennas)
    slopes, offsets = cp.Parameter((devices, 2 * antennas)), cp.Parameter(devices)
    program = cp.Problem(cp.Minimize(cp.sum_squares(r)), [slopes @ r >= offsets])
    norm = float((np.abs(m) ** 2).sum())
    for _ in range(rounds):
        projected = h * (h.conj().T @ m)
        slopes.value = 2 * np.concatenate([projected.real, projected.imag]).T
        offsets.value = 1 + np.abs(m.conj() @ h) ** 2
        program.solve(solver=cp.CLARABEL)
        m = scale_to_feasible(r.value[:antennas] + 1j * r.value[antennas:], h)
        before, norm = norm, float((np.abs(m) ** 2).sum())
        if before - norm <= tolerance * before:
            break
    return m


def sdr(h: Array, rng: np.random.Generator, samples: int = 200) -> Array:
    """Relax to min tr X subject to h_k^H X h_k >= 1, then the best of Gaussian samples of covariance X."""
    antennas = len(h)
    X = cp.Variable((antennas, antennas), hermitian=True)
    gains = [cp.real(cp.trace(X @ np.outer(h[:, k], h[:, k].conj()))) >= 1 for k in range(h.shape[1])]
    cp.Problem(cp.Minimize(cp.real(cp.trace(X))), [X >> 0, *gains]).solve(solver=cp.CLARABEL)
    values, vectors = np.linalg.eigh(X.value)
    root = vectors * np.sqrt(values.clip(0))
    draws = rng.standard_normal((samples, antennas)) + 1j * rng.standard_normal((samples, antennas))
    receivers = [scale_to_feasible(root @ draw, h) for draw in draws]
    return min(receivers, key=lambda m: float((np.abs(m) ** 2).sum()))
