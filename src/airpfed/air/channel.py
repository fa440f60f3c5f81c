"""Small-scale fading: one channel a coherence block."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.streams import stream


def rayleigh(gain: Float[Tensor, " K"], antennas: int, rng: torch.Generator) -> Complex[Tensor, "{antennas} K"]:
    """Draw one block of flat fading, h_k ~ CN(0, gain_k I_M).

    gain: mean power gain per device, linear. Returns h, constant over the block; E||h_k||^2 = M gain_k.
    """
    h = torch.randn(antennas, len(gain), dtype=torch.complex128, generator=rng)
    return h * gain.sqrt()


def estimated(
    gain: Float[Tensor, "*#B K"], antennas: int, csi_error: float, seed: int, t: int, blocks: range
) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
    """Channel estimates and true channels of a round's coherence blocks, h = estimate + error.

    gain: mean power gain per device, linear, the same in all blocks or a row each.
    estimate ~ CN(0, (1 - csi_error) gain), error ~ CN(0, csi_error gain), independent (the MMSE estimate's statistics).
    Random: block i of round t has streams of its own; ask for all devices, so that each has the same channel in every
    slot that sees the block.
    """
    each = list(zip(blocks, gain.expand(len(blocks), -1), strict=True))
    estimate = [rayleigh((1 - csi_error) * g, antennas, stream(seed, "fading", t, block)) for block, g in each]
    error = [rayleigh(csi_error * g, antennas, stream(seed, "csi error", t, block)) for block, g in each]
    known = torch.stack(estimate)
    return known, known + torch.stack(error)
