"""OFDM waveforms against the block model, as markdown: `python benchmarks/waveform.py`.

Eight devices, eight antennas, 1024 subcarriers over 20 MHz with a cyclic prefix of 73 samples, exponential delay
profiles, uniform forcing, random entries at 20 dB per antenna. The block model gives every group of subcarriers one
channel.
"""

import torch

from airpfed.air.channels.fading import exponential_profile, frequencies, response
from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.problem import Transceiver, TransceiverProblem, gains
from airpfed.air.symbols import pack_symbols, unpack_symbols
from airpfed.air.waveform import demodulate, mismatch, off_grid, over_the_waveform
from airpfed.core.rng import stream

DEVICES, ANTENNAS, SUBCARRIERS, PREFIX, SYMBOLS, DRAWS = 8, 8, 1024, 73, 2, 10
BANDWIDTH_HZ, NOISE = 20e6, 0.01


def draw(delay_s: float, number: int) -> torch.Tensor:
    profile = exponential_profile(delay_s, BANDWIDTH_HZ, PREFIX)
    rng = stream(0, "taps", number)
    taps = torch.randn(len(profile), ANTENNAS, DEVICES, dtype=torch.complex128, generator=rng)
    return profile.sqrt()[:, None, None] * taps


def designed(taps: torch.Tensor, groups: int) -> Transceiver:
    one = torch.ones(DEVICES, dtype=torch.float64)
    h = response(taps, frequencies(groups, SUBCARRIERS))
    return uniform_forcing(TransceiverProblem(h, one[None] / DEVICES, one[:1], one, NOISE, 0 * one))


def both(delay_s: float, groups: int, number: int) -> tuple[float, float, float]:
    """Of one draw: mean squared difference of received entries, what is foretold, the error of the sum itself."""
    taps, rng = draw(delay_s, number), stream(0, "entries", number)
    made, entries = designed(taps, groups), 2 * SYMBOLS * SUBCARRIERS
    u = torch.randn(DEVICES, entries, dtype=torch.float64, generator=rng)
    z = torch.randn(ANTENNAS, SYMBOLS * (SUBCARRIERS + PREFIX), dtype=torch.complex128, generator=rng) * NOISE**0.5
    x = pack_symbols(u, "iq")
    wave = unpack_symbols(over_the_waveform(x, made, taps, z, SUBCARRIERS), "iq", entries)[0]
    heard = gains(response(taps, frequencies(groups, SUBCARRIERS)), made) @ x.reshape(DEVICES, groups, -1).transpose(
        0, 1
    )
    noise = off_grid(demodulate(z, PREFIX, SUBCARRIERS), groups).reshape(ANTENNAS, groups, -1).transpose(0, 1)
    block = unpack_symbols((heard + made.receiver.mH @ noise).transpose(0, 1).flatten(1), "iq", entries)[0]
    error = float((block - u.mean(0)).square().mean())
    return float((wave - block).square().mean()), float(mismatch(made, taps, SUBCARRIERS).mean()), error


def main() -> None:
    print(
        f"Means over {DRAWS} draws, seed 0. Errors per entry, of symbols of unit power: the sum, their mean, has "
        f"1/{DEVICES}. Its own error is the block model's, noise at 20 dB.\n"
    )
    print(
        "| rms delay | groups | waveform minus block, per entry | over the sum's power | foretold | ratio +- s.e. "
        "| own error |"
    )
    print("|---|---|---|---|---|---|---|")
    for delay_s in (0.0, 50e-9, 300e-9):
        for groups in (1, 16, 128, 1024):
            rows = torch.tensor([both(delay_s, groups, number) for number in range(DRAWS)], dtype=torch.float64)
            apart, foretold, error = rows.mean(0).tolist()
            ratio = "equal to rounding"
            if foretold > 1e-20:
                ratios = rows[:, 0] / rows[:, 1]
                ratio = f"{float(ratios.mean()):.3f} +- {float(ratios.std()) / DRAWS**0.5:.3f}"
            print(
                f"| {1e9 * delay_s:g} ns | {groups} | {apart:.2e} | {DEVICES * apart:.2e} | {foretold:.2e} | {ratio} "
                f"| {error:.2e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
