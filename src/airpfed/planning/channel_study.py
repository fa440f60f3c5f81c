"""The parts that a link study and a plan share: the settings of a grid, random channels, the slots of a round."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from airpfed.air.grouping import best_grouping, fixed_grouping
from airpfed.air.link_level import Drops
from airpfed.air.network import Network
from airpfed.air.schedule import SlotPlan, Updates, Uplink, schedule
from airpfed.config import settings_file
from airpfed.config.applicability import refuse_ineffective
from airpfed.config.grid import Point, name_grid_point, overrides_of
from airpfed.config.schema import Settings

APART = 1_000_003
"""Seeds of draws that should be independent lie so far apart."""


def read_points(
    file: Path,
    overrides: Sequence[str],
    points: Iterable[tuple[Point, Sequence[str]]],
    check: Callable[[Settings], None],
) -> list[Settings]:
    """Read the settings of every point of a grid.

    points: (point, more overrides). check: a function that raises UserError for settings that cannot be studied. Raises
    UserError naming the point if settings are wrong, or if a key of the file has no effect at any point.
    """
    every_settings = []
    for point, more in points:
        with name_grid_point(point):
            settings = settings_file.read_settings(file, [*overrides, *overrides_of(point), *more], training=False)
            check(settings)
        every_settings.append(settings)
    refuse_ineffective(str(file), every_settings, training=False)
    return every_settings


def draw_channels(
    link: Uplink, networks: Sequence[tuple[Network, float]], blocks: int, recorded: bool = False
) -> Drops:
    """Draw the channels of `blocks` coherence blocks in each network, in the round before the first.

    networks: (network, factor of its mean power gains). recorded: whether channels come from a file, whose blocks are
    draws in that round. The first blocks of other models lie beside each other in the band where there are several
    groups of subcarriers; then every block is the first one of a seed of its own. Random: fading and estimation errors,
    fixed by the link's seed and the network's drop.
    """
    together = blocks if recorded or link.subcarrier_groups == 1 else 1
    seeds = [link.seed + number * APART for number in range(blocks // together)]
    estimates, channels, variances, gains, noise = [], [], [], [], []
    for (network, scale), seed in product(networks, seeds):
        # Pilots see the scaled gains at the link's noise: these gains at less noise.
        drop = replace(link, network=network, noise=link.noise / scale, seed=seed)
        if link.interference is not None:
            scaled = replace(link.interference, power=link.interference.power / scale)
            drop = replace(drop, interference=scaled)
        received = drop.received_channels(0, together)
        estimates.append(scale**0.5 * received.h_est)
        channels.append(scale**0.5 * received.h)
        variances.append((scale * received.csi_variance).expand(together, -1, -1))
        if received.antenna_noise is not None:
            noise.append(scale * received.antenna_noise)
        gains.append((scale * network.gain).expand(together, -1, -1))
    return Drops(
        h_est=torch.cat(estimates),
        h=torch.cat(channels),
        csi_variance=torch.cat(variances),
        gain=torch.cat(gains),
        antenna_noise=torch.cat(noise) if noise else None,
    )


def full_updates(link: Uplink) -> Updates:
    """The updates of a round in which all devices take part, with zeros for gradients."""
    devices = len(link.samples)
    shared = torch.zeros(devices, sum(b - a for a, b in link.shared_groups))
    personal = torch.zeros(devices, sum(b - a for a, b in link.personal_groups))
    return Updates(shared, personal, present=torch.ones(devices, dtype=torch.bool))


def schedule_full_round(link: Uplink, drops: Drops) -> list[SlotPlan]:
    """The slots of a round in which all devices take part; tasks are grouped by the drops if access is "auto"."""
    updates = full_updates(link)
    grouping = fixed_grouping(link, updates.present)
    if link.access == "auto":
        grouping = best_grouping(link, drops.h_est, drops.csi_variance, updates.present)
    return schedule(link, updates, grouping)
