"""One target alone: uniform forcing and the least error from one continuation."""

from functools import partial

from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.blocks import blockwise
from airpfed.air.designs.normalized import NormalizedProblem
from airpfed.air.designs.paths import forced, forced_and_least, forced_from, least_from


def wanted(unit: NormalizedProblem) -> tuple[Complex[Tensor, "B D L"], Float[Tensor, "B L"]]:
    """Channels and weights of the devices that the only target wants; of all if it wants none."""
    h, w = unit.h[:, 0], unit.weights[..., 0, :]
    own = (w > 0).reshape(-1, w.shape[-1]).any(0)
    if 0 < int(own.sum()) < len(own):
        h, w = h[:, :, own], w[..., own]
    return h, w.expand(len(h), -1)


def ridge(unit: NormalizedProblem) -> Float[Tensor, " B"]:
    """What ||m||^2 costs: the slot's noise, and its CSI error at full power."""
    return unit.noise + unit.csi.sum((1, 2))


def least_norm(
    h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"], m: Complex[Tensor, "B M"] | None = None
) -> tuple[Complex[Tensor, "B M"], int]:
    """A receiver of locally least norm with |m^H h_k| >= w_k for every device that is heard.

    A device of weight 0 constrains nothing. m: a start; without one, the weighted dominant eigenvector and a
    continuation in the penalty. Returns (m, steps).
    """
    (found,), steps = blockwise(partial(forced, 1), h, weights) if m is None else blockwise(forced_from, h, weights, m)
    return found, steps


def least_norm_alone(unit: NormalizedProblem, starts: int) -> tuple[Complex[Tensor, "B D 1"], int]:
    """The forcing receiver of least norm over `starts` paths. Returns (receiver, steps)."""
    (found,), steps = blockwise(partial(forced, starts), *wanted(unit))
    return found[..., None], steps


def least_error_alone(
    unit: NormalizedProblem, starts: int
) -> tuple[Complex[Tensor, "B D 1"], Complex[Tensor, "B D 1"], int]:
    """The receivers of least norm and of least error over `starts` paths, the error for optimal devices.

    The first is that of `least_norm_alone`. Returns (forcing, least error, steps).
    """
    (forcing, least), steps = blockwise(partial(forced_and_least, starts), *wanted(unit), ridge(unit))
    return forcing[..., None], least[..., None], steps


def least_error_from(unit: NormalizedProblem, m: Complex[Tensor, "B D 1"]) -> tuple[Complex[Tensor, "B D 1"], int]:
    """The receiver of least error near a given one. Returns (receiver, steps)."""
    (found,), steps = blockwise(least_from, *wanted(unit), ridge(unit), m[..., 0])
    return found[..., None], steps
