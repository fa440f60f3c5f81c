"""`airpfed link` and the API's `link_study`: designs over the same random channels, without a model."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from airpfed.air.designs import DESIGNS
from airpfed.air.link_level import Drops, draw_segment, iid_error, mean_db, segment_bound, study
from airpfed.air.problem import Transceiver
from airpfed.air.schedule import Uplink, reason_without_any_claim, slot_uses
from airpfed.air.segments import Segment
from airpfed.air.slot_errors import SlotErrors
from airpfed.config import settings_file
from airpfed.config.choice import Choice, parse_choice
from airpfed.config.grid import Point, axes_of, check_count, grid_points, name_grid_point
from airpfed.config.schema import RadioSettings, Settings
from airpfed.core.errors import UserError
from airpfed.core.files import path_inside, write_atomic
from airpfed.experiment import build
from airpfed.experiment.build.uplink import (
    build_network,
    build_uplink,
    check_channel_memory,
    checked_design,
    design_fields,
    noise_power,
)
from airpfed.model.methods import Block, blocks_of
from airpfed.planning.channel_study import draw_channels, read_points, schedule_full_round
from airpfed.report import charts, plots
from airpfed.tasks.split import device_sizes

KEYS_READ = {
    "radio": {*RadioSettings.model_fields} - {"scheme", "design", "drop", "station_power_dbm"},
    "tasks": {"devices", "samples_per_device", "sizes", "sizes_sigma", "power_dbm"},
    "adapters": {"method", "rank_shared", "rank_personal"},
    "run": {"seed"},
}
"""Section -> keys that a link study depends on: all designs are compared, and drops are counted from 1."""

DESIGN = "radio.design"
"""The setting whose values are compared. Its options may be varied: they are those of the design of its name."""
ENTRIES = 1000
"""Real entries sent through a channel for each unit of rank; channel uses are those of vectors of this length."""


@dataclass(frozen=True)
class DesignResult:
    """The errors of one design at one setting.

    Fields in dB hold (mean over draws, standard error); claimed, measured and bias are linear means of Pi. gap: mean of
    Pi for i.i.d. symbols over its lower bound, minus 1, or None if no bound is known. ms: milliseconds of design per
    draw. uses: channel uses of a round. Without a claim `claimed` is None and `claimed_db` is nan.
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


PointResults = tuple[Point, dict[str, DesignResult]]
"""A point of the grid, and its results by design."""

COLUMNS = (
    "pi_db", "pi_db_se", "s_db", "s_db_se", "p_db", "p_db_se", "claimed", "measured", "bias", "gap", "iterations", "ms",
    "uses", "claimed_db",
)  # fmt: skip
"""Columns of link.csv after the grid's keys and the design."""


def study_grid(
    file: Path,
    overrides: Sequence[str],
    grid: Sequence[str],
    draws: int,
    rho: float,
    designs: Sequence[str] = (),
) -> Iterator[PointResults]:
    """Compare designs at every point of a grid, over `draws` channels each.

    grid: axes in the form that `airpfed.config.grid` reads. rho: correlation of the devices' symbols. designs: labels,
    such as `mmse(starts=4)`; none for all, those of the file's plug-ins included. Raises UserError before the first
    point is computed if an option or the settings of any point are wrong.
    """
    check_count("--draws", draws)
    check_correlation("--correlation", rho)
    axes = axes_of(grid)
    keys = [key for axis in axes for key in axis.split("/")]
    for key in keys:
        check_grid_key(key)
    points = grid_points(axes)
    every_settings = read_points(file, overrides, [(point, ()) for point in points], check_link_settings)
    labels = [parse_design(f"--design {name}", name).label for name in designs or DESIGNS]
    for key in keys:
        if key.startswith(f"{DESIGN}."):
            check_design_option(key, every_settings[0].radio.design.name, labels)
    return study_points(zip(points, every_settings, strict=True), draws, rho, labels)


def check_design_option(key: str, name: str, labels: Sequence[str]) -> None:
    """Raise UserError if an option of the settings' design `name` is varied and this design is not compared."""
    if name not in [label.partition("(")[0] for label in labels]:
        raise UserError(f'--grid {key}: has no effect, because {DESIGN} = "{name}" is not compared')
    if name not in labels:
        raise UserError(f"--grid {key}: has no effect beside --design with options; --design {name} is right")


def check_correlation(option: str, rho: float) -> None:
    """Raise UserError unless the correlation of the devices' symbols is from 0 to 1."""
    if not 0 <= rho <= 1:
        raise UserError(f"{option} {rho:g}: should be from 0 to 1")


def parse_design(source: str, value: Any) -> Choice:
    """Read a design: a label, a function or a row. source: what messages begin with."""
    try:
        return parse_choice("designs", value)
    except ValueError as error:
        text = str(error).removeprefix(f' = "{str(value).partition("(")[0].strip()}": ').lstrip(".")
        raise UserError(f"{source}: {text}") from None


def check_grid_key(key: str) -> None:
    """Raise UserError if a key of the grid has no effect on a link study."""
    section, last = key.split(".")[0], key.split(".")[-1]
    if key == DESIGN:
        raise UserError(
            f"--grid {key}: has no effect on a link study, which compares every design; choose some with --design NAME"
        )
    if section not in KEYS_READ:
        raise UserError(f"--grid {key}: has no effect on a link study, which reads only {', '.join(KEYS_READ)}")
    table = settings_file.section_of(Settings.model_fields[section].annotation)
    if table and last in table.model_fields and last not in KEYS_READ[section]:
        right = ", ".join(sorted(KEYS_READ[section])) if section != "radio" else "every other key of radio"
        raise UserError(f"--grid {key}: has no effect on a link study, which reads {right}")


def check_link_settings(settings: Settings) -> None:
    """Raise UserError if the method sends nothing, or if the number of a task's devices is known only from its data."""
    blocks = adapter_blocks(settings)
    if not any(scope in ("global", "task") for block in blocks for scope in (block.a, block.b)):
        raise UserError(f'adapters.method = "{settings.adapters.method.name}": sends nothing, so there is no uplink')
    for task in settings.tasks:
        if task.devices == 0:
            raise UserError(f"tasks.{task.name}.devices = 0: a study reads no data; should be at least 1 here")


def study_points(
    settings_by_point: Iterable[tuple[Point, Settings]], draws: int, rho: float, designs: Sequence[str]
) -> Iterator[PointResults]:
    """Compute the points one after another."""
    for point, settings in settings_by_point:
        with name_grid_point(point):
            results = compare_designs(settings, draws, rho, designs)
        yield point, results


def compare_designs(
    settings: Settings,
    draws: int,
    rho: float,
    designs: Iterable[str] | Mapping[str, Any] = (),
    samples: Sequence[float] | None = None,
    gap: bool = True,
) -> dict[str, DesignResult]:
    """Compare designs over the same `draws` drops and channels.

    rho: correlation of the devices' symbols. designs: labels, or label -> a design as `parse_design` reads it; none for
    all. The label of the settings' design stands for it, with its options. samples: D_k, in place of those of the
    settings. gap: whether to compute the lower bounds. Raises UserError, which names the design, if a design returns
    what is no transceiver.
    """
    designs = designs if isinstance(designs, Mapping) else {name: name for name in designs}
    drops, link = draw_drops(settings, link_of(settings, samples), draws)
    by_slot: dict[str, tuple[Segment, Float[Tensor, " B"] | None]] = {}
    results: dict[str, DesignResult] = {}
    for label, value in (designs or dict(zip(DESIGNS, DESIGNS, strict=True))).items():
        is_of_settings = isinstance(value, str) and value == settings.radio.design.name
        choice = settings.radio.design if is_of_settings else parse_design(f"design {label}", value)
        design_link = replace(
            link, **design_fields(settings.radio, choice.row, checked_design(f"design {label}", choice))
        )
        slots = schedule_full_round(design_link, drops)
        for slot in slots:
            if slot.name not in by_slot:
                segment = draw_segment(link, slot, drops, ENTRIES, rho)
                has_bound = gap and rho == 0 and settings.radio.energy == "per_slot"
                by_slot[slot.name] = segment, segment_bound(segment) if has_bound else None
        segments, lower_bounds = zip(*(by_slot[slot.name] for slot in slots), strict=True)
        errors, transceivers, seconds = study(design_link, segments)
        results[label] = summarise_design(design_link, segments, errors, transceivers, seconds, lower_bounds)
    return results


def link_of(settings: Settings, samples: Sequence[float] | None = None) -> Uplink:
    """The radio side for the settings' tasks and ranks; vectors have ENTRIES entries for each unit of rank.

    samples: D_k of each device, in place of those of the settings.
    """
    tasks = settings.tasks
    counts = [
        torch.from_numpy(device_sizes(build.shares_of(task), task.devices, settings.run.seed, task.name))
        for task in tasks
    ]
    shared = personal = 0.0
    for block in adapter_blocks(settings):
        shared += block.rank * ((block.a == "global") + (block.b == "global")) / (4 if block.alternating else 2)
        personal += block.rank * ((block.a == "task") + (block.b == "task")) / 2
    d_s, d_p = int(shared * ENTRIES), int(personal * ENTRIES)
    task_of = torch.cat([torch.full((len(count),), n) for n, count in enumerate(counts)])
    kinds = {"all": (0, d_s)} if d_s else {}, {"all": (0, d_p)} if d_p else {}
    weights = torch.cat(counts).double() if samples is None else torch.tensor(samples, dtype=torch.float64)
    return build_uplink(settings, task_of, weights, kinds, (d_p,) * len(tasks))


def adapter_blocks(settings: Settings) -> tuple[Block, ...]:
    """The blocks of adapters of the settings' method and ranks."""
    adapters = settings.adapters
    return blocks_of(adapters.method.name, adapters.rank_shared, adapters.rank_personal, adapters.method.options)


def draw_drops(settings: Settings, link: Uplink, draws: int) -> tuple[Drops, Uplink]:
    """Draw the channels of the drops 1, 2, ..., at the noise of drop 1, to which the radio side is set.

    With `radio.snr_db` the channels of every drop are scaled to the median gain of drop 1. Each drop then has exactly
    that median SNR, as the single drop of a run has.
    """
    radio, tasks = settings.radio, len(link.lengths)
    check_channel_memory(radio, len(link.task_of), tasks, draws)
    networks = [
        build_network(radio.model_copy(update={"drop": number}), settings.run.seed, link.task_of, tasks)
        for number in range(1, draws + 1)
    ]
    medians = [float((link.power_limit * network.gain.amax(0)).median()) for network in networks]
    scales = [1.0 if radio.snr_db is None else medians[0] / median for median in medians]
    link = replace(link, noise=noise_power(radio, networks[0].gain, link.power_limit))
    return draw_channels(link, list(zip(networks, scales, strict=True)), 1), link


def summarise_design(
    link: Uplink,
    segments: Sequence[Segment],
    errors: Sequence[SlotErrors],
    transceivers: Sequence[Transceiver],
    seconds: float,
    lower_bounds: Sequence[Float[Tensor, " B"] | None],
) -> DesignResult:
    """Combine the slots of a design: Pi weights the slots' MSEs by D_n/D and by their shares of d.

    seconds: time to design all draws. lower_bounds: the MSE that no design can beat, by slot.
    """
    slots = [segment.slot for segment in segments]
    weights = [torch.tensor([target_share(link, task) for task in slot.targets], dtype=torch.float64) for slot in slots]
    total = sum(float(weight.sum()) for weight in weights)

    def pi(values: Sequence[Float[Tensor, "B _U"]], scopes: str = "sp") -> Float[Tensor, " B"]:
        parts = []
        for slot, weight, value in zip(slots, weights, values, strict=True):
            selected = torch.tensor([("s" if task is None else "p") in scopes for task in slot.targets])
            parts.append(value @ (weight * selected) / total)
        return torch.stack(parts).sum(0)

    measured, claimed = [slot.measured for slot in errors], [slot.claimed for slot in errors]
    nothing_sent = [slot.zero_estimate_error for slot in errors]
    iid = [iid_error(segment, tx) for segment, tx in zip(segments, transceivers, strict=True)]

    pairs = zip(lower_bounds, weights, strict=True)
    scaled = [bound * weight.sum() / total for bound, weight in pairs if bound is not None]
    bound = torch.stack(scaled).sum(0) if len(scaled) == len(slots) else None
    claims = not reason_without_any_claim(link)
    return DesignResult(
        pi_db=mean_db(pi(measured) / pi(nothing_sent)),
        s_db=mean_db(pi(measured, "s") / pi(nothing_sent, "s")),
        p_db=mean_db(pi(measured, "p") / pi(nothing_sent, "p")),
        claimed=float(pi(claimed).mean()) if claims else None,
        measured=float(pi(measured).mean()),
        bias=float(pi([slot.bias for slot in errors]).mean()),
        gap=None if bound is None or not (bound > 0).all() else float((pi(iid) / bound - 1).mean()),
        iterations=sum(transceiver.iterations for transceiver in transceivers),
        ms=1e3 * seconds / len(claimed[0]),
        uses=sum(slot_uses(link, slot) for slot in slots),
        claimed_db=mean_db(pi(claimed) / pi(nothing_sent)) if claims else (math.nan, math.nan),
    )


def target_share(link: Uplink, task: int | None) -> float:
    """A target's weight in Pi before normalisation: its number of entries, times D_n/D for task n.

    task: index n; None for the s-sum. The same weights as in `air.uplink.pi_of` with all devices present.
    """
    if task is None:
        return float(sum(b - a for a, b in link.shared_groups))
    return link.lengths[task] * float(link.samples[link.task_of == task].sum() / link.samples.sum())


def design_table(title: str, results: dict[str, DesignResult], draws: int) -> Table:
    """The results of a point as a table for a terminal."""
    columns = ("design", "Pi dB", "s dB", "p dB", "claimed", "measured", "bias", "gap", "iterations", "ms", "uses")
    table = Table(*columns, title=f"NMSE over {draws} channels (mean of dB +- standard error) {title}".strip())
    for name, result in results.items():
        decibels = (result.pi_db, result.s_db, result.p_db)
        table.add_row(
            name,
            *(f"{mean:.2f} +- {error:.2f}".replace("nan", "-") for mean, error in decibels),
            *("-" if value is None else f"{value:.3e}" for value in (result.claimed, result.measured, result.bias)),
            "-" if result.gap is None else f"{100 * result.gap:.1f} %",
            str(result.iterations),
            f"{result.ms:.2f}",
            str(result.uses),
        )
    return table


def as_json(results: dict[str, DesignResult]) -> dict[str, dict[str, float | None]]:
    """The tree that `--json` prints for a point: decibels are means over draws, claimed and measured are linear Pi."""
    keys = ("pi_db", "s_db", "p_db", "claimed", "measured", "gap", "ms", "uses")
    return {name: {key: columns_of(result)[key] for key in keys} for name, result in results.items()}


def columns_of(result: DesignResult) -> dict[str, float | None]:
    """A result by the names of COLUMNS; None for nan, which an unused slot or the error of one draw gives."""
    values: dict[str, float | None] = {}
    for key, value in vars(result).items():
        values |= {key: value[0], f"{key}_se": value[1]} if isinstance(value, tuple) else {key: value}
    return {key: None if (v := values[key]) is None or math.isnan(v) else v for key in COLUMNS}


def save_results(
    results: Iterator[PointResults], folder: Path, grid: Sequence[str], log: Callable[[str], None]
) -> Iterator[PointResults]:
    """Yield the points on and write them: link.csv after each, figures after the last.

    Replaces the files of an earlier study in `folder`. log: a function that receives one line with the names of the
    files. Raises UserError if the folder cannot be created, and OSError with the name of a file that cannot be written.
    """
    axes = axes_of(grid)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    for name in charts.file_names(axes):  # no old figure beside new numbers if this study is interrupted
        path_inside(folder, name).unlink(missing_ok=True)
    columns, lines = (*axes, "design", *COLUMNS), list[charts.Line]()
    write_atomic(folder / "link.csv", charts.to_csv(columns, lines))
    for point, by_design in results:
        setting = dict(change.split("=", 1) for change in point)
        lines += [{**setting, "design": name, **columns_of(result)} for name, result in by_design.items()]
        write_atomic(folder / "link.csv", charts.to_csv(columns, lines))
        yield point, by_design
    for name, content in plots.link_files(lines, axes):
        write_atomic(path_inside(folder, name), content)
    log(f"{folder}: wrote {', '.join(['link.csv', *charts.file_names(axes)])}")
