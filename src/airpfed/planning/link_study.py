"""`airpfed link`: every design over the same random channels, without a model."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from airpfed.air.designs import DESIGNS
from airpfed.air.grouping import best_grouping
from airpfed.air.link_level import Drops, SlotStudy, bounds, draw, mean_db, study
from airpfed.air.network import csi_variance
from airpfed.air.problem import Transceiver
from airpfed.air.schedule import Grouping, SlotPlan, Uplink, grouping_of, plan, slot_uses
from airpfed.air.segments import Segment
from airpfed.air.uplink import estimate_channels
from airpfed.config import settings_file
from airpfed.config.applicability import refuse
from airpfed.config.grid import Point, at, axes_of, changes, counted, points
from airpfed.config.schema import Method, RadioSettings, Settings
from airpfed.core.errors import UserError, hint
from airpfed.experiment import build, build_uplink
from airpfed.model.adapters import blocks_of
from airpfed.tasks.split import sizes

EVERY = tuple(DESIGNS)
READ = {
    "radio": {*RadioSettings.model_fields} - {"design", "drop"},
    "tasks": {"devices", "samples_per_device", "sizes", "sizes_sigma", "power_dbm"},
    "adapters": {"method", "rank_shared", "rank_personal"},
    "run": {"seed"},
}
"""Keys that a study without a model depends on: every design is compared, and drops are counted from 1."""


ENTRIES = 1000
"""Real entries sent a channel and a unit of rank; channel uses are told for vectors of this length."""


@dataclass(frozen=True)
class Row:
    """One design at one setting: decibels are means over draws with their standard errors, the rest is linear.

    claimed, measured, bias: Pi. gap: mean of the i.i.d. Pi over its lower bound, minus 1; None where none is known.
    claimed: None (and nan decibels) where nothing is claimed.
    """

    pi_db: tuple[float, float]
    s_db: tuple[float, float]
    p_db: tuple[float, float]
    claimed: float | None
    measured: float
    bias: float
    gap: float | None
    iterations: int
    ms: float
    uses: int
    claimed_db: tuple[float, float]


NUMBERS = (
    "pi_db", "pi_db_se", "s_db", "s_db_se", "p_db", "p_db_se", "claimed", "measured", "bias", "gap", "iterations", "ms",
    "uses", "claimed_db",
)  # fmt: skip
"""Columns of link.csv behind the grid's keys and the design."""


def studies(
    file: Path,
    overrides: Sequence[str],
    grid: Sequence[str],
    draws: int,
    rho: float,
    designs: Sequence[str] = EVERY,
) -> Iterator[tuple[Point, dict[str, Row]]]:
    """(changed settings, design -> row) for every point of the grid; `grid`: `airpfed.config.grid`.

    Raises UserError before the first point is computed if an option or any point's settings are wrong.
    """
    counted("--draws", draws)
    if not 0 <= rho <= 1:
        raise UserError(f"--correlation {rho:g}: should be from 0 to 1")
    for name in designs:
        if name not in DESIGNS:
            raise UserError(f"--design {name}: should be one of {', '.join(DESIGNS)}{hint(name, DESIGNS)}")
    axes, every = axes_of(grid), list[tuple[Point, Settings]]()
    for key in (key for axis in axes for key in axis.split("/")):
        checked(key)
    for point in points(axes):
        with at(point):
            settings = settings_file.read(file, [*overrides, *changes(point)])
            if not any(
                scope in ("global", "task") for block in blocks_of(*ranks(settings)) for scope in (block.a, block.b)
            ):
                raise UserError(f'adapters.method = "{settings.adapters.method}": sends nothing, so there is no uplink')
            if empty := [task.name for task in settings.tasks if task.devices == 0]:
                raise UserError(f"tasks.{empty[0]}.devices = 0: a study reads no data; should be at least 1 here")
            every.append((point, settings))
    refuse(str(file), [settings for _, settings in every], training=False)
    return compared(every, draws, rho, designs)


def checked(key: str) -> None:
    """UserError where a key of the grid has no effect on a study."""
    section, last = key.split(".")[0], key.split(".")[-1]
    if key == "radio.design":
        raise UserError(f"--grid {key}: does not change the link: every design is compared; --design NAME picks some")
    if section not in READ:
        raise UserError(f"--grid {key}: does not change the link, which knows {', '.join(READ)} only")
    table = settings_file.section_of(Settings.model_fields[section].annotation)
    if table and last in table.model_fields and last not in READ[section]:
        right = ", ".join(sorted(READ[section])) if section != "radio" else "every other key of radio"
        raise UserError(f"--grid {key}: does not change the link, which reads {right}")


def compared(
    every: Iterable[tuple[Point, Settings]], draws: int, rho: float, designs: Sequence[str]
) -> Iterator[tuple[Point, dict[str, Row]]]:
    """Compute the points one after another."""
    for point, settings in every:
        with at(point):
            rows = compare(settings, draws, rho, designs)
        yield point, rows


def compare(settings: Settings, draws: int, rho: float, designs: Iterable[str] = EVERY) -> dict[str, Row]:
    """Designs over the same `draws` drops and channels; rho: correlation of the devices' symbols."""
    drops, link = drops_of(settings, link_of(settings), draws)
    present = torch.ones(len(link.samples), dtype=torch.bool)
    drawn: dict[str, tuple[Segment, Float[Tensor, " B"] | None]] = {}
    rows: dict[str, Row] = {}
    for name in designs:
        one = replace(link, **build_uplink.design_fields(settings.radio, name))
        grouping = grouping_of(one, present)
        if link.access == "auto":
            grouping = best_grouping(one, drops.known, drops.csi_variance, present)
        slots = slots_of(one, grouping)
        for slot in slots:
            if slot.name not in drawn:
                segment = draw(link, slot, drops, ENTRIES, rho)
                drawn[slot.name] = (
                    segment,
                    bounds(segment) if rho == 0 and settings.radio.energy == "per_slot" else None,
                )
        segments, least = zip(*(drawn[slot.name] for slot in slots), strict=True)
        rows[name] = summarised(one, slots, *study(one, segments), least)
    return rows


def link_of(settings: Settings) -> Uplink:
    """The radio side for the settings' tasks and ranks; vectors have ENTRIES entries a unit of rank."""
    tasks = settings.tasks
    counts = [
        torch.from_numpy(sizes(build.shares_of(task), task.devices, settings.run.seed, task.name)) for task in tasks
    ]
    shared = personal = 0.0
    for block in blocks_of(*ranks(settings)):
        shared += block.rank * ((block.a == "global") + (block.b == "global")) / (4 if block.in_turn else 2)
        personal += block.rank * ((block.a == "task") + (block.b == "task")) / 2
    d_s, d_p = int(shared * ENTRIES), int(personal * ENTRIES)
    task_of = torch.cat([torch.full((len(count),), n) for n, count in enumerate(counts)])
    kinds = {"all": (0, d_s)} if d_s else {}, {"all": (0, d_p)} if d_p else {}
    return build_uplink.link(settings, task_of, torch.cat(counts).double(), kinds, (d_p,) * len(tasks))


def ranks(settings: Settings) -> tuple[Method, int, int]:
    """What decides the blocks of adapters: method, shared and personal rank."""
    return settings.adapters.method, settings.adapters.rank_shared, settings.adapters.rank_personal


def drops_of(settings: Settings, link: Uplink, draws: int) -> tuple[Drops, Uplink]:
    """Channels of drops 1, 2, ... of the settings' world, and the radio side at their noise.

    With `radio.snr_db` every drop has exactly that median SNR, as a run's one drop has: channels are scaled to that
    of drop 1.
    """
    wanted, seed = settings.radio, settings.run.seed
    build_uplink.room(wanted, len(link.task_of), len(link.lengths), draws)
    worlds = [
        build_uplink.network(wanted.model_copy(update={"drop": number}), seed, link.task_of, len(link.lengths))
        for number in range(1, draws + 1)
    ]
    medians = [float((link.power * one.gain.amax(0)).median()) for one in worlds]
    scales = [1.0 if wanted.snr_db is None else medians[0] / median for median in medians]
    known, true, variance, gain = [], [], [], []
    for one, scale in zip(worlds, scales, strict=True):
        seen, heard = estimate_channels(replace(link, network=one), 0, 1)
        known.append(scale**0.5 * seen)
        true.append(scale**0.5 * heard)
        variance.append(scale * csi_variance(one, link.csi_error))
        gain.append(scale * one.gain)
    noise = build_uplink.noise_watts(wanted, worlds[0].gain, link.power)
    drops = Drops(torch.cat(known), torch.cat(true), torch.stack(variance), torch.stack(gain))
    return drops, replace(link, noise=noise)


def slots_of(link: Uplink, grouping: Grouping) -> list[SlotPlan]:
    """The slots of a round in which all devices are there."""
    devices = len(link.samples)
    shared = torch.zeros(devices, sum(b - a for a, b in link.shared_groups))
    personal = torch.zeros(devices, sum(b - a for a, b in link.personal_groups))
    return plan(link, shared, personal, torch.ones(devices, dtype=torch.bool), grouping)


def summarised(
    link: Uplink,
    slots: Sequence[SlotPlan],
    found: Sequence[SlotStudy],
    made: Sequence[Transceiver],
    seconds: float,
    least: Sequence[Float[Tensor, " B"] | None],
) -> Row:
    """Slots together: Pi and the p-slots' MSE weighted by D_n/D and by the shares of d."""
    weights = [torch.tensor([target_share(link, task) for task in slot.targets], dtype=torch.float64) for slot in slots]
    total = sum(float(weight.sum()) for weight in weights)

    def pi(part: str, only: str = "sp") -> Float[Tensor, " B"]:
        values = []
        for slot, weight, one in zip(slots, weights, found, strict=True):
            problem = torch.tensor([("s" if task is None else "p") in only for task in slot.targets])
            values.append(getattr(one, part) @ (weight * problem) / total)
        return torch.stack(values).sum(0)

    known = [bound * weight.sum() / total for bound, weight in zip(least, weights, strict=True) if bound is not None]
    bound = torch.stack(known).sum(0) if len(known) == len(slots) else None
    claims = link.impairments.clipping is None
    return Row(
        pi_db=mean_db(pi("measured") / pi("silence")),
        s_db=mean_db(pi("measured", "s") / pi("silence", "s")),
        p_db=mean_db(pi("measured", "p") / pi("silence", "p")),
        claimed=float(pi("claimed").mean()) if claims else None,
        measured=float(pi("measured").mean()),
        bias=float(pi("bias").mean()),
        gap=None if bound is None or not (bound > 0).all() else float((pi("iid") / bound - 1).mean()),
        iterations=sum(one.iterations for one in made),
        ms=1e3 * seconds / len(found[0].claimed),
        uses=sum(slot_uses(link, slot) for slot in slots),
        claimed_db=mean_db(pi("claimed") / pi("silence")) if claims else (math.nan, math.nan),
    )


def target_share(link: Uplink, task: int | None) -> float:
    """A target's part in Pi before norming: its entries, a task's times D_n/D."""
    if task is None:
        return float(sum(b - a for a, b in link.shared_groups))
    return link.lengths[task] * float(link.samples[link.task_of == task].sum() / link.samples.sum())


def table(title: str, rows: dict[str, Row], draws: int) -> Table:
    """The rows for a terminal."""
    columns = ("design", "Pi dB", "s dB", "p dB", "claimed", "measured", "bias", "gap", "iterations", "ms", "uses")
    made = Table(*columns, title=f"NMSE over {draws} channels (mean of dB +- standard error) {title}".strip())
    for name, one in rows.items():
        made.add_row(
            name,
            *(f"{mean:.2f} +- {error:.2f}".replace("nan", "-") for mean, error in (one.pi_db, one.s_db, one.p_db)),
            *("-" if value is None else f"{value:.3e}" for value in (one.claimed, one.measured, one.bias)),
            "-" if one.gap is None else f"{100 * one.gap:.1f} %",
            str(one.iterations),
            f"{one.ms:.2f}",
            str(one.uses),
        )
    return made


def as_json(rows: dict[str, Row]) -> dict[str, dict[str, float | None]]:
    """What `--json` prints for a point: decibels are means over draws, claimed and measured are linear Pi."""
    keys = ("pi_db", "s_db", "p_db", "claimed", "measured", "gap", "ms", "uses")
    return {name: {key: numbers(one)[key] for key in keys} for name, one in rows.items()}


def numbers(row: Row) -> dict[str, float | None]:
    """A row by the names of NUMBERS; None also where there is no number: a slot not used, an error of one draw."""
    values: dict[str, float | None] = {}
    for key, value in vars(row).items():
        values |= {key: value[0], f"{key}_se": value[1]} if isinstance(value, tuple) else {key: value}
    return {key: None if (v := values[key]) is None or math.isnan(v) else v for key in NUMBERS}
