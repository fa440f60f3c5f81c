"""Settings of the radio to coherence blocks: their size, given or derived, their pilots, and their change inside."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from airpfed.air import resources
from airpfed.air.coherence import (
    BlockChange,
    Scattering,
    divisors,
    doppler_hz,
    largest_block,
    scattering,
    time_correlation,
)
from airpfed.air.network import Estimation
from airpfed.air.schedule import Uplink
from airpfed.config.schema import DELAY_SPREAD_S, FLAT_USES, RadioSettings
from airpfed.core import units
from airpfed.core.errors import UserError

LARGE_SHARE = 0.25
"""The share of a block above which derived pilots are told of."""
PILOT_SHARE = 0.1
"""The share of a block that pilots = "derived" takes for all devices together."""
MOST_PILOTS = 1000
"""The most pilots of a device that are derived: a block of a still channel may be longer than a round."""


@dataclass(frozen=True)
class BlockPlan:
    """The coherence blocks of an uplink.

    groups: of subcarriers. length: channel uses of a block. data_uses: those that are left for data. estimation: the
    pilots and their age. change: how channels change within a block; None if they are constant.
    """

    groups: int
    length: int
    data_uses: int
    estimation: Estimation
    change: BlockChange | None


def plan_blocks(radio: RadioSettings, devices: int) -> BlockPlan:
    """Plan the coherence blocks of an uplink of so many devices. Raises UserError if pilots do not fit into a block."""
    groups, length = block_shape(radio)
    pilots = pilot_uses(radio, devices, length)
    data_uses = length - devices * (pilots or 0)
    contamination = 0.0 if radio.pilot_contamination_db == "off" else units.from_db(radio.pilot_contamination_db)
    change = None
    if is_changing(radio):
        change = BlockChange(scattering_of(radio), radio.subcarriers // groups, length, data_uses)
    estimation = Estimation(pilots, contamination, estimate_age(radio), radio.pilots == "derived")
    return BlockPlan(groups, length, data_uses, estimation, change)


def block_shape(radio: RadioSettings) -> tuple[int, int]:
    """Return (groups of subcarriers, channel uses of a block), as given or derived from the channel's physics.

    Raises UserError if a given number leaves no block that changes by at most `coherence_error`.
    """
    groups, length = radio.subcarrier_groups, radio.coherence_symbols
    if "recorded" in (groups, length):
        recorded = radio.channel.row.recorded_blocks
        found = recorded(radio.bandwidth_hz, radio.subcarriers, **radio.channel.options) if recorded else (None, None)
        groups = (found[0] or 1) if groups == "recorded" else groups
        length = (found[1] or FLAT_USES) if length == "recorded" else length
    if isinstance(groups, int) and isinstance(length, int):
        return groups, length
    scattered, error, subcarriers = scattering_of(radio), radio.coherence_error, radio.subcarriers
    if isinstance(groups, int):
        width = subcarriers // groups
        symbols = scattered.longest(width, error)
        if not symbols:
            least = next(g for g in divisors(subcarriers) if scattered.longest(subcarriers // g, error))
            raise UserError(
                f"radio.subcarrier_groups = {groups}: the channel changes by {scattered.cost(width, 1):.2g} of its "
                f"power within a group; should be at least {least} for coherence_error = {error:g}"
            )
        return groups, width * symbols
    if isinstance(length, int):
        costs = {g: scattered.cost(subcarriers // g, -(-length // (subcarriers // g))) for g in divisors(subcarriers)}
        best = min(costs, key=lambda g: costs[g])
        if costs[best] > error:
            most, symbols = _largest(scattered, error)
            raise UserError(
                f"radio.coherence_symbols = {length}: the channel changes by {costs[best]:.2g} of its power within a "
                f"block; should be at most {subcarriers // most * symbols} for coherence_error = {error:g}"
            )
        return best, length
    groups, symbols = _largest(scattered, error)
    return groups, subcarriers // groups * symbols


def is_changing(radio: RadioSettings) -> bool:
    """Whether channels change within a block: as the settings say, or where blocks are derived from the channel."""
    if radio.within_block == "auto":
        return radio.has_derived_blocks and radio.delay_spread_s is not None
    return radio.within_block == "changing"


def delay_spread_of(radio: RadioSettings) -> float | None:
    """Return the channel's delay spread, seconds; None for a channel without one. Raises UserError if it is none."""
    spread = radio.delay_spread_s
    wrong = isinstance(spread, bool) or not isinstance(spread, (int, float)) or not 0 <= spread <= 1
    if spread is not None and wrong:
        raise UserError(f"radio.channel.delay_spread_s = {spread!r}: should be seconds from 0 to 1, for derived blocks")
    return None if spread is None else float(spread)


def scattering_of(radio: RadioSettings) -> Scattering:
    """Return the scattering of the channel: its delay spread, or the default one, and the devices' speed.

    Raises UserError if the channel should change within a block and has no delay spread of its own.
    """
    spread = delay_spread_of(radio)
    if spread is None and radio.within_block == "changing":
        raise UserError(
            f'radio.within_block = "changing": channel = "{radio.channel.name}" has no option delay_spread_s to derive '
            'it from; should be "constant"'
        )
    symbol_s = radio.subcarriers * resources.use_seconds(radio.bandwidth_hz)
    return _scattering(
        DELAY_SPREAD_S if spread is None else spread,
        speed_mps(radio),
        radio.carrier_hz,
        radio.bandwidth_hz,
        radio.subcarriers,
        symbol_s,
    )


_scattering = lru_cache(64)(scattering)


@lru_cache(64)
def _largest(scattered: Scattering, error: float) -> tuple[int, int]:
    return largest_block(scattered, error)


def speed_mps(radio: RadioSettings) -> float:
    """Return the speed of the devices, metres a second: that of the channel, if it has the option speed_mps."""
    speed = radio.channel.options.get("speed_mps")
    return radio.speed_kmh / 3.6 if speed is None else float(speed)


def estimate_age(radio: RadioSettings) -> float:
    """Return the correlation of the channel at the pilots with the channel in use, as given or by Jakes' law.

    Its sign is left out: receivers know the speed, and turn their estimates back.
    """
    if radio.csi_age_correlation is not None:
        return radio.csi_age_correlation
    if radio.feedback_delay_s == 0:
        return 1.0
    delay = torch.tensor(radio.feedback_delay_s)
    return abs(float(time_correlation(doppler_hz(speed_mps(radio), radio.carrier_hz), delay)))


def pilot_uses(radio: RadioSettings, devices: int, length: int) -> int | None:
    """Return the pilot uses of each device in a block of `length` uses; None for channels that are known.

    Raises UserError if the pilots of all devices leave no use for data.
    """
    if radio.pilots == "perfect":
        return None
    most = (length - 1) // devices
    if most == 0:
        raise UserError(
            f"radio.pilots = {format_count(radio.pilots)}: a coherence block of {length} uses has no room for one "
            f"pilot of each of {devices} devices; needs fewer devices, blocks of at least {devices + 1} uses, or "
            'pilots = "perfect"'
        )
    if not isinstance(radio.pilots, int):
        return min(max(1, int(PILOT_SHARE * length) // devices), MOST_PILOTS)
    if radio.pilots > most:
        raise UserError(
            f"radio.pilots = {radio.pilots}: pilots of {devices} devices take {radio.pilots * devices} uses of a "
            f"coherence block of {length}; should be at most {most}"
        )
    return radio.pilots


def pilot_notes(radio: RadioSettings, link: Uplink) -> list[str]:
    """Return a line for the user if derived pilots take much of a block, because each device that superposes needs one.

    A scheme without superposition chooses its pilots itself, as `with_fastest_pilots` does for bits.
    """
    share = 1 - link.coherence_symbols / link.block_uses
    if radio.pilots != "derived" or link.design is None or share <= LARGE_SHARE:
        return []
    return [
        f'radio.pilots = "derived": one pilot of each of {len(link.samples)} devices takes {share:.0%} of a coherence '
        "block"
    ]


def format_count(value: int | str | None) -> str:
    """Write a number as it is, and a word in quotes."""
    return f'"{value}"' if isinstance(value, str) else str(value)
