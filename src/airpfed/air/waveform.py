"""The same uplink as a waveform: OFDM modulation, time-domain channels, antennas, demodulation, combining.

The block model says that a coherence block, a group of subcarriers over some OFDM symbols, sees one channel. Here
nothing is assumed but delays within the cyclic prefix. Per subcarrier both agree to rounding; over a group they differ
by how much the channel turns within it, which `mismatch` foretells.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.channels.fading import frequencies, response
from airpfed.air.problem import Transceiver


def onto_grid(x: Complex[Tensor, "R uses"], groups: int, subcarriers: int) -> Complex[Tensor, "R symbols N"]:
    """Uses on OFDM symbols: those of block g lie on the g-th group of subcarriers, symbol after symbol."""
    blocks = x.reshape(len(x), groups, -1, subcarriers // groups)
    return blocks.transpose(1, 2).reshape(len(x), -1, subcarriers)


def off_grid(grid: Complex[Tensor, "R symbols N"], groups: int) -> Complex[Tensor, "R uses"]:
    """The inverse of `onto_grid`."""
    rows, symbols, subcarriers = grid.shape
    return grid.reshape(rows, symbols, groups, subcarriers // groups).transpose(1, 2).reshape(rows, -1)


def modulated(grid: Complex[Tensor, "K symbols N"], prefix: int) -> Complex[Tensor, "K samples"]:
    """Samples at the bandwidth: inverse transform of every symbol, its end repeated before it as cyclic prefix."""
    signal = torch.fft.ifft(torch.fft.ifftshift(grid, dim=-1), norm="ortho")
    return torch.cat([signal[..., signal.shape[-1] - prefix :], signal], -1).flatten(1)


def demodulated(signal: Complex[Tensor, "M samples"], prefix: int, subcarriers: int) -> Complex[Tensor, "M symbols N"]:
    """Symbols on the subcarriers of received samples; what comes after the last symbol is dropped."""
    length = prefix + subcarriers
    whole = signal[:, : signal.shape[1] // length * length].reshape(len(signal), -1, length)
    grid: Tensor = torch.fft.fftshift(torch.fft.fft(whole[..., prefix:], norm="ortho"), dim=-1)
    return grid


def through(
    signal: Complex[Tensor, "K samples"], taps: Complex[Tensor, "L M K"], z: Complex[Tensor, "M samples"]
) -> Complex[Tensor, "M samples"]:
    """What the antennas receive: every device's signal through its taps, all added, and noise z."""
    heard = z.clone()
    for delay, gain in enumerate(taps):
        heard[:, delay:] += gain @ signal[:, : signal.shape[1] - delay]
    return heard


def over_the_waveform(
    x: Complex[Tensor, "K uses"],
    made: Transceiver,
    taps: Complex[Tensor, "L M K"],
    z: Complex[Tensor, "M samples"],
    subcarriers: int,
) -> Complex[Tensor, "T uses"]:
    """Received symbols of one coherence time whose blocks are the subcarrier groups: block g of `made` serves group g.

    z: noise samples at the antennas, which also say how long the cyclic prefix is. Uses fill whole OFDM symbols.
    """
    groups = len(made.transmit)
    sent = x.reshape(len(x), groups, -1) * made.transmit.T[:, :, None]
    grid = onto_grid(sent.flatten(1), groups, subcarriers)
    prefix = z.shape[1] // grid.shape[1] - subcarriers
    heard = off_grid(demodulated(through(modulated(grid, prefix), taps, z), prefix, subcarriers), groups)
    each = heard.reshape(len(heard), groups, -1).transpose(0, 1)
    return (made.receiver.mH @ each).transpose(0, 1).flatten(1)


def mismatch(made: Transceiver, taps: Complex[Tensor, "L M K"], subcarriers: int) -> Float[Tensor, "G T"]:
    """Mean squared error that the block model does not see, for i.i.d. symbols of unit power, by group and target.

    Mean over the group's subcarriers of sum_k |m_i^H (H_k(f) - H_k(f_g)) b_k|^2, f_g the group's mean frequency.
    """
    groups = len(made.transmit)
    fine = response(taps, frequencies(subcarriers, subcarriers)).reshape(groups, -1, *taps.shape[1:])
    coarse = response(taps, frequencies(groups, subcarriers))[:, None]
    lost = made.receiver.mH[:, None] @ (fine - coarse) * made.transmit[:, None, None, :]
    return lost.abs().square().sum(-1).mean(1)
