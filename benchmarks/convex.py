"""Uniform forcing by convex programming, as the literature does it: the oracle that ours is measured against.

Needs cvxpy, which the package does not. Channels are scaled: min ||m||^2 subject to |m^H h_k| >= 1, one block, (M, K).
"""

import cvxpy as cp
import numpy as np

Array = np.ndarray


def reachable(m: Array, h: Array) -> Array:
    """The receiver on the ray of m whose weakest device is heard with exactly 1."""
    return m / np.abs(m.conj() @ h).min()


def eigenvector(h: Array) -> Array:
    """The dominant eigenvector of sum_k h_k h_k^H / ||h_k||^4, on its ray the shortest that is feasible."""
    lifted = h / (np.abs(h) ** 2).sum(0)
    return reachable(np.linalg.eigh(lifted @ lifted.conj().T)[1][:, -1], h)


def sca(h: Array, m: Array, tolerance: float = 1e-4, rounds: int = 100) -> Array:
    """Successive convex approximation from m until ||m||^2 changes by less than `tolerance`, relatively.

    2 Re(z^H h_k h_k^H m) >= 1 + |z^H h_k|^2 around z, with the program compiled once (real: [Re m; Im m]).
    """
    antennas, devices = h.shape
    r = cp.Variable(2 * antennas)
    slopes, offsets = cp.Parameter((devices, 2 * antennas)), cp.Parameter(devices)
    joint = cp.JointProblem(cp.Minimize(cp.sum_squares(r)), [slopes @ r >= offsets])
    norm = float((np.abs(m) ** 2).sum())
    for _ in range(rounds):
        heard = h * (h.conj().T @ m)
        slopes.value = 2 * np.concatenate([heard.real, heard.imag]).T
        offsets.value = 1 + np.abs(m.conj() @ h) ** 2
        joint.solve(solver=cp.CLARABEL)
        m = reachable(r.value[:antennas] + 1j * r.value[antennas:], h)
        before, norm = norm, float((np.abs(m) ** 2).sum())
        if before - norm <= tolerance * before:
            break
    return m


def sdr(h: Array, rng: np.random.Generator, samples: int = 200) -> Array:
    """Semidefinite relaxation min tr X, h_k^H X h_k >= 1, then the best of Gaussian samples of covariance X."""
    antennas = len(h)
    X = cp.Variable((antennas, antennas), hermitian=True)
    heard = [cp.real(cp.trace(X @ np.outer(h[:, k], h[:, k].conj()))) >= 1 for k in range(h.shape[1])]
    cp.JointProblem(cp.Minimize(cp.real(cp.trace(X))), [X >> 0, *heard]).solve(solver=cp.CLARABEL)
    values, vectors = np.linalg.eigh(X.value)
    root = vectors * np.sqrt(values.clip(0))
    draws = rng.standard_normal((samples, antennas)) + 1j * rng.standard_normal((samples, antennas))
    found = [reachable(root @ draw, h) for draw in draws]
    return min(found, key=lambda m: float((np.abs(m) ** 2).sum()))
