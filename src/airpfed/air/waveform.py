"""The uplink as a waveform: OFDM modulation, time-domain channels, antennas, demodulation and combining.

The block model assumes one channel for a coherence block, a group of subcarriers over some OFDM symbols. The waveform
assumes only delays within the cyclic prefix. With one subcarrier per group, both agree to rounding; over a larger group
they differ by the change of the channel within it, which `mismatch` predicts.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.channels.fading import frequencies, response
from airpfed.air.grid import ResourceGrid
from airpfed.air.problem import Transceiver


def place_uses(x: Complex[Tensor, "R uses"], grid: ResourceGrid, first_use: int = 0) -> Complex[Tensor, "R symbols N"]:
    """Place uses of a round, from `first_use` on, on its OFDM symbols from the first on; 0 on free subcarriers."""
    placed = x.new_zeros(len(x), grid.num_symbols(first_use + x.shape[1]), grid.subcarriers)
    symbol, subcarrier = grid.positions(first_use, x.shape[1])
    placed[:, symbol, subcarrier] = x
    return placed


def take_uses(
    placed: Complex[Tensor, "R symbols N"], grid: ResourceGrid, first_use: int, uses: int
) -> Complex[Tensor, "R {uses}"]:
    """Read `uses` uses of a round, from `first_use` on, from its OFDM symbols: the inverse of `place_uses`."""
    symbol, subcarrier = grid.positions(first_use, uses)
    return placed[:, symbol, subcarrier]


def onto_grid(x: Complex[Tensor, "R uses"], groups: int, subcarriers: int) -> Complex[Tensor, "R symbols N"]:
    """Place the uses of one coherence time: those of block g on the g-th group of subcarriers, symbol after symbol."""
    return place_uses(x, ResourceGrid(x.shape[1] // groups, groups, subcarriers))


def off_grid(grid: Complex[Tensor, "R symbols N"], groups: int) -> Complex[Tensor, "R uses"]:
    """Read the uses of one coherence time from OFDM symbols, the inverse of `onto_grid`."""
    _, symbols, subcarriers = grid.shape
    uses = symbols * subcarriers
    return take_uses(grid, ResourceGrid(uses // groups, groups, subcarriers), 0, uses)


def modulate(grid: Complex[Tensor, "K symbols N"], prefix: int) -> Complex[Tensor, "K samples"]:
    """Compute samples at the bandwidth: the inverse transform of every symbol after its cyclic prefix."""
    signal = torch.fft.ifft(torch.fft.ifftshift(grid, dim=-1), norm="ortho")
    return torch.cat([signal[..., signal.shape[-1] - prefix :], signal], -1).flatten(1)


def demodulate(signal: Complex[Tensor, "M samples"], prefix: int, subcarriers: int) -> Complex[Tensor, "M symbols N"]:
    """Compute the symbols on the subcarriers of received samples; samples after the last symbol are dropped."""
    length = prefix + subcarriers
    whole = signal[:, : signal.shape[1] // length * length].reshape(len(signal), -1, length)
    grid: Tensor = torch.fft.fftshift(torch.fft.fft(whole[..., prefix:], norm="ortho"), dim=-1)
    return grid


def propagate(
    signal: Complex[Tensor, "K samples"], taps: Complex[Tensor, "L M K"], z: Complex[Tensor, "M samples"]
) -> Complex[Tensor, "M samples"]:
    """Compute the antennas' samples: the sum of every device's signal through its taps, plus noise z."""
    received = z.clone()
    for delay, gain in enumerate(taps):
        received[:, delay:] += gain @ signal[:, : signal.shape[1] - delay]
    return received


def over_the_waveform(
    x: Complex[Tensor, "K uses"],
    transceiver: Transceiver,
    taps: Complex[Tensor, "L M K"],
    z: Complex[Tensor, "M samples"],
    subcarriers: int,
) -> Complex[Tensor, "T uses"]:
    """Send symbols over the waveform in one coherence time; returns the symbols after the receivers.

    Block g of the transceiver serves the g-th group of subcarriers. z: noise samples at the antennas; their number
    determines the length of the cyclic prefix. Uses fill whole OFDM symbols.
    """
    groups = len(transceiver.transmit_factors)
    transmitted = x.reshape(len(x), groups, -1) * transceiver.transmit_factors.T[:, :, None]
    grid = onto_grid(transmitted.flatten(1), groups, subcarriers)
    prefix = z.shape[1] // grid.shape[1] - subcarriers
    samples = propagate(modulate(grid, prefix), taps, z)
    received = off_grid(demodulate(samples, prefix, subcarriers), groups)
    by_group = received.reshape(len(received), groups, -1).transpose(0, 1)
    return (transceiver.receiver.mH @ by_group).transpose(0, 1).flatten(1)


def mismatch(transceiver: Transceiver, taps: Complex[Tensor, "L M K"], subcarriers: int) -> Float[Tensor, "G T"]:
    """The mean-squared error that the block model neglects, for i.i.d. symbols of unit power, by group and target.

    It is the mean over the group's subcarriers of sum_k |m_i^H (H_k(f) - H_k(f_g)) b_k|^2, with f_g the mean frequency
    of the group.
    """
    groups = len(transceiver.transmit_factors)
    fine = response(taps, frequencies(subcarriers, subcarriers)).reshape(groups, -1, *taps.shape[1:])
    coarse = response(taps, frequencies(groups, subcarriers))[:, None]
    error = transceiver.receiver.mH[:, None] @ (fine - coarse) * transceiver.transmit_factors[:, None, None, :]
    return error.abs().square().sum(-1).mean(1)
