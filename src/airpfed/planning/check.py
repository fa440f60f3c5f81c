"""`airpfed check`: what a run of a settings file would do, without training."""

from collections.abc import Iterator
from pathlib import Path

import torch

from airpfed.air.schedule import Uplink
from airpfed.config.applicability import settings_notes
from airpfed.config.schema import Settings, choices_of
from airpfed.config.settings_file import read_new_settings
from airpfed.core.rows import summary_line
from airpfed.core.units import to_db
from airpfed.experiment import build
from airpfed.experiment.data_report import data_lines, report_data
from airpfed.model.methods import SCOPES
from airpfed.planning.planner import memory_gb, round_seconds
from airpfed.training.aggregators import trimmed_count
from airpfed.training.setup import TrainingSetup


def check_settings(file: Path, overrides: list[str]) -> Iterator[str]:
    """Read the settings of a file, its plug-ins, data and base model, and write lines about the run.

    One round of gradients and uplink is played to measure its time; nothing is kept. Raises UserError as a run would.
    """
    notes: list[str] = []
    settings = read_new_settings(file, overrides, notes=notes)
    yield from [*notes, *settings_notes(settings)]
    for plugin in settings.plugins:
        yield f"plug-in: {plugin}"
    unused = {"radio.design", "radio.channel"} if settings.radio.scheme.name == "error_free" else set[str]()
    for key, choice in choices_of(settings).items():
        if key in unused:
            continue
        yield f"{key} = {choice.label}: {summary_line(choice.function)}"
    tasks = build.load_tasks(settings)
    experiment = build.build_experiment(settings, tasks)
    build.check_head_scope(settings, experiment.clients.backbone)
    yield from data_lines(report_data(settings, tasks, experiment))
    yield from experiment.notes
    yield from experiment_lines(settings, experiment)


def blocks_line(link: Uplink) -> str:
    """Write what a coherence block of a link is, and what pilots take of it."""
    pilots, share = link.estimation.pilots, 1 - link.coherence_symbols / link.block_uses
    groups = (
        "the whole band" if link.subcarrier_groups == 1 else f"one of {link.subcarrier_groups} groups of subcarriers"
    )
    change = "constant" if link.change is None else "changing"
    knowledge = f"{share:.0%} for {pilots} pilots a device" if pilots else "known channels"
    if link.estimation.derived and link.design is None:
        knowledge = "pilots as the scheme chooses"
    return f"blocks: {link.block_uses:,} uses of {groups}, {change} inside; {knowledge}"


def experiment_lines(settings: Settings, experiment: TrainingSetup) -> Iterator[str]:
    """Write lines about the sizes of an experiment: adapters, channel, memory and time."""
    layout, clients = experiment.clients.layout, experiment.clients
    sizes = ", ".join(f"{scope} {layout.size(scope):,}" for scope in SCOPES if layout.size(scope))
    yield f"adapters: entries by scope: {sizes}"
    if settings.server.aggregator.name == "trimmed_mean":
        trim, devices = settings.server.aggregator.options["trim"], torch.bincount(clients.task_of).tolist()
        sums = [("all", len(clients.task_of))] if layout.size("global") else []
        sums += zip((task.name for task in settings.tasks), devices, strict=True) if layout.size("task") else []
        counts = ", ".join(f"{trimmed_count(trim, count)} of {count} ({name})" for name, count in sums)
        yield f"trimmed_mean: devices left out of an entry's mean at each end: {counts}"
    link = build.client_uplink(settings, clients)
    gains = (link.power_limit * link.network.gain.amax(0) / max(link.noise, 1e-300)).sort().values
    if link.noise > 0 and settings.radio.scheme.name != "error_free":
        low, middle, high = (to_db(float(gains[k])) for k in (0, (len(gains) - 1) // 2, -1))
        yield f"channel: SNR at one antenna: {low:.1f} to {high:.1f} dB over the devices, median {middle:.1f} dB"
        yield blocks_line(link)
    yield f"memory: about {memory_gb(settings, experiment):.2f} GB for the base model and one pass"
    seconds, rounds = round_seconds(experiment), settings.server.rounds
    yield f"time: {seconds:.2f} s for a round here, {seconds * rounds:.0f} s for {rounds}"
