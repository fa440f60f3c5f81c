"""`airpfed export-channels`: the channels of an experiment's rounds as a file that `radio.channel = "file"` reads."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from airpfed.air.channels.file import channel_arrays, count, save_channel_file
from airpfed.air.digital import rate_blocks
from airpfed.air.grouping import round_blocks
from airpfed.air.network import Network
from airpfed.config.schema import Settings
from airpfed.config.settings_file import read_settings
from airpfed.core.errors import UserError
from airpfed.core.memory import check_memory
from airpfed.core.rows import label_of
from airpfed.experiment import build
from airpfed.experiment.build.blocks import block_shape
from airpfed.experiment.build.uplink import build_network

UNITS = "h: amplitudes, sqrt of a power gain; gain, scattered: linear power gains; stations, devices: metres"


def export_channels(
    file: Path, overrides: Sequence[str], rounds: int | None, blocks: int | None, out: Path
) -> Iterator[str]:
    """Draw the channels of an experiment's rounds, write them, and say so in lines.

    rounds: None for the rounds of the settings. blocks: coherence blocks of a round; None for as many as a round of
    the experiment needs, for which its data and base model are read. Raises UserError for wrong settings, and for
    channels that do not fit into memory.
    """
    if out.suffix.lower() not in (".npz", ".mat") or out.is_dir():
        raise UserError(f"--out {out}: should be a file that ends in .npz or .mat")
    notes: list[str] = []
    settings = read_settings(file, overrides, notes)
    yield from notes
    rounds = settings.server.rounds if rounds is None else rounds
    for option, number in (("--rounds", rounds), ("--blocks", blocks)):
        if number is not None and number < 1:
            raise UserError(f"{option} {number}: should be at least 1")
    network, blocks = network_of(settings, blocks)
    antennas, devices = len(network.stations) * network.antennas, len(network.devices)
    numbers = {"round": rounds, "block": blocks, "antenna": antennas, "device": devices}
    size = ", ".join(count(number, noun) for noun, number in numbers.items())
    check_memory(f"--rounds {rounds}: channels of {size}", 64.0 * rounds * blocks * antennas * devices, "fewer rounds")
    arrays = channel_arrays(network, settings.run.seed, rounds, blocks)
    save_channel_file(out, arrays | metadata_of(settings))
    channel = label_of({"name": "file", "path": str(out)})
    yield f"{out}: h ({size}) of {settings.radio.channel.label}"
    yield f"use: --set 'radio.channel={channel}'"


def network_of(settings: Settings, blocks: int | None) -> tuple[Network, int]:
    """The network of an experiment, and the coherence blocks of its rounds, unless they are given."""
    radio, tasks = settings.radio, settings.tasks
    if radio.scheme.name == "error_free":
        raise UserError('radio.scheme = "error_free": sends nothing over channels; "linear" would be right here')
    if blocks is not None and all(task.devices for task in tasks):
        task_of = torch.arange(len(tasks)).repeat_interleave(torch.tensor([task.devices for task in tasks]))
        return build_network(radio, settings.run.seed, task_of, len(tasks)), blocks
    clients = build.build_experiment(settings, build.load_tasks(settings)).clients
    link = build.sending_uplink(settings, clients, build.client_uplink(settings, clients))
    # A scheme of bits averages its rates over some blocks.
    return link.network, blocks or max(round_blocks(link), rate_blocks(link) if link.design is None else 1)


def metadata_of(settings: Settings) -> dict[str, np.ndarray]:
    """The numbers of the settings that a channel file is held to, and what a reader may want to know."""
    radio = settings.radio
    groups, length = block_shape(radio)
    numbers = {
        "carrier_hz": radio.carrier_hz,
        "bandwidth_hz": radio.bandwidth_hz,
        "subcarriers": radio.subcarriers,
        "subcarrier_groups": groups,
        "coherence_s": groups * length / radio.bandwidth_hz,
        "coherence_symbols": length,
        "seed": settings.run.seed,
        "drop": radio.drop,
    }
    texts = {"channel": radio.channel.label, "shape": "rounds, blocks, antennas, devices", "units": UNITS}
    return {key: np.array(value) for key, value in (numbers | texts).items()}
