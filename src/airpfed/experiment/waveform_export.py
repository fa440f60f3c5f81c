"""`airpfed export-waveform`: a round's waveform as SigMF recordings, one for each antenna, read back and decoded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air import sigmf
from airpfed.air.grid import ResourceGrid
from airpfed.air.mixing import EntryMixing, GroupMixing
from airpfed.air.round_waveform import RoundWaveform, SegmentReceivers, antenna_samples, decode_round, round_waveform
from airpfed.air.schedule import Updates, Uplink
from airpfed.air.uplink import Aggregate, uplink
from airpfed.config.settings_file import check_new, read_settings
from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic
from airpfed.experiment import build
from airpfed.experiment.library import Experiment
from airpfed.training.round import finite

MAX_DIFFERENCE = 1e-3
"""Largest difference of the decoded sums from the uplink's, relative to these; float32 samples leave about 1e-6."""
RECEIVERS = "receivers.npz"
"""The file beside the recordings with the receivers, scrambling signs and scales of the round's sums."""


def export_waveform(file: Path, overrides: Sequence[str], t: int, out: Path) -> Iterator[str]:
    """Run an experiment up to round t, write the round's waveform to a folder, decode it again, and say so in lines.

    Raises UserError for settings whose scheme superposes nothing, and if the decoded sums are not those of the uplink.
    """
    notes: list[str] = []
    settings = read_settings(file, overrides, notes)
    check_new(settings, str(file), overrides, notes=notes)
    yield from notes
    if not settings.radio.scheme.row.superposes:
        raise UserError(
            f'radio.scheme = "{settings.radio.scheme.label}": superposes no symbols, so that there is no waveform; '
            '"linear" would be right'
        )
    if not 1 <= t <= settings.server.rounds:
        raise UserError(f"--round {t}: should be from 1 to server.rounds = {settings.server.rounds}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; should be a new or an empty folder")
    experiment = Experiment(settings)
    setup = experiment.setup
    states = (state for state, _ in experiment.rounds() if state.round == t - 1)
    state = setup.initial if t == 1 else next(states, None)
    if state is None:
        raise UserError(f"--round {t}: server.air_seconds ends the run before this round")
    gradients = setup.collect(setup, state).gradients
    updates = Updates(gradients["global"], gradients["task"], finite(gradients))
    link = build.sending_uplink(settings, setup.clients, build.client_uplink(settings, setup.clients))
    waveform = round_waveform(link, t, updates, state.server.correlation_statistics)
    write_waveform(link, waveform, settings.radio.carrier_hz, out)
    received = uplink(replace(link, backhaul_bits=None), t, updates, state.server.correlation_statistics)
    difference = decoding_error(link, received, read_sums(out, t))
    if not difference <= MAX_DIFFERENCE:
        for path in out.iterdir():
            path.unlink()
        raise UserError(
            f"--out {out}: left empty; the sums decoded from the recordings differ by {difference:.2g} from the "
            "uplink's; a setting of [radio] is not part of the waveform"
        )
    antennas = len(waveform.received)
    yield f"{out}: round {t} at {antennas} antennas, slots {', '.join(waveform.slots)}"
    yield f"read back: the sums of the uplink, relative difference {difference:.1e}"


def write_waveform(link: Uplink, waveform: RoundWaveform, carrier_hz: float, out: Path) -> None:
    """Write the recordings of all antennas, their collection, and the receivers. out: a folder."""
    out.mkdir(parents=True, exist_ok=True)
    name, streams = collection_name(waveform.t), dict[str, str]()
    grid, antennas = waveform.grid, len(waveform.received)
    fields = {
        "core:description": f"uplink of round {waveform.t}: OFDM samples at an antenna, in the square root of watts",
        "core:recorder": "airpfed",
        "core:collection": name,
        "airpfed:round": waveform.t,
        "airpfed:seed": waveform.seed,
        "airpfed:subcarriers": grid.subcarriers,
        "airpfed:subcarrier_groups": grid.groups,
        "airpfed:coherence_symbols": grid.coherence_symbols,
        "airpfed:cyclic_prefix": waveform.prefix,
        "airpfed:pilot_symbols": waveform.pilot_symbols,
    }
    annotations = annotations_of(waveform, link.bandwidth_hz, carrier_hz)
    for antenna in range(antennas):
        recording = f"{name}-antenna-{antenna:0{len(str(antennas - 1))}d}"
        station, number = divmod(antenna, link.network.antennas)
        streams[recording] = sigmf.write_recording(
            out / recording,
            antenna_samples(waveform, antenna),
            link.bandwidth_hz,
            carrier_hz,
            {**fields, "airpfed:antenna": number, "airpfed:station": station},
            annotations,
        )
    sigmf.write_collection(out / name, streams, f"uplink of round {waveform.t} at {antennas} antennas")
    save_receivers(out / RECEIVERS, waveform)


def collection_name(t: int) -> str:
    """The name of a round's collection."""
    return f"round-{t}"


def annotations_of(waveform: RoundWaveform, bandwidth_hz: float, carrier_hz: float) -> list[dict[str, Any]]:
    """SigMF annotations of the pilots, of every slot and of every coherence block: samples and frequencies.

    Each covers whole OFDM symbols; where a slot or a block does not fill its last symbol, the next one shares it.
    """
    grid, first = waveform.grid, waveform.pilot_symbols
    length, uses = grid.subcarriers + waveform.prefix, waveform.received.shape[1]

    def annotation(label: str, comment: str, symbols: Tensor, subcarriers: Tensor) -> dict[str, Any]:
        begin, end = int(symbols.min()), int(symbols.max()) + 1
        low, high = (int(subcarriers.min()) - 0.5, int(subcarriers.max()) + 0.5)
        return {
            "core:sample_start": begin * length,
            "core:sample_count": (end - begin) * length,
            "core:freq_lower_edge": carrier_hz + bandwidth_hz * (low / grid.subcarriers - 0.5),
            "core:freq_upper_edge": carrier_hz + bandwidth_hz * (high / grid.subcarriers - 0.5),
            "core:label": label,
            "core:comment": comment,
        }

    pilots = annotation(
        "pilots",
        f"one use for each of {waveform.pilot_grid.coherence_symbols} devices in each coherence block, at full power; "
        "the simulated channel estimates are not made of these",
        *waveform.pilot_grid.positions(0, waveform.pilots.shape[1]),
    )
    result = [pilots]
    for slot, (begin, end) in waveform.slots.items():
        symbols, subcarriers = grid.positions(begin, end - begin)
        result.append(annotation(f"slot {slot}", f"uses {begin} to {end - 1}", symbols + first, subcarriers))
    for block, begin in enumerate(range(0, uses, grid.coherence_symbols)):
        symbols, subcarriers = grid.positions(begin, min(grid.coherence_symbols, uses - begin))
        comment = f"subcarrier group {block % grid.groups}, coherence time {block // grid.groups}"
        result.append(annotation(f"block {block}", comment, symbols + first, subcarriers))
    return result


# Reading back


def save_receivers(path: Path, waveform: RoundWaveform) -> None:
    """Write what `read_sums` needs beside the samples."""
    import io

    grid = waveform.grid
    arrays: dict[str, Any] = {
        "grid": np.array([grid.coherence_symbols, grid.groups, grid.subcarriers]),
        "prefix": np.array(waveform.prefix),
        "pilot_symbols": np.array(waveform.pilot_symbols),
        "segments": np.array(len(waveform.receivers)),
    }
    for number, segment in enumerate(waveform.receivers):
        arrays |= {
            f"{number}.{key}": value.numpy() if isinstance(value, Tensor) else np.array(value)
            for key, value in vars(segment).items()
            if key != "mixing"
        }
        maps = {} if segment.mixing is None else segment.mixing.by_length
        arrays |= {f"{number}.mixing.{length}": mixing.to_array() for length, mixing in maps.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomic(path, content.getvalue())


def load_receivers(path: Path) -> tuple[ResourceGrid, int, int, tuple[SegmentReceivers, ...]]:
    """Read the grid, the samples of the cyclic prefix, the symbols of pilots, and the receivers of a round."""
    with np.load(path, allow_pickle=False) as archive:
        coherence_symbols, groups, subcarriers = archive["grid"].tolist()
        segments = []
        for number in range(int(archive["segments"])):
            arrays = {key.partition(".")[2]: archive[key] for key in archive.files if key.startswith(f"{number}.")}
            first, last = arrays["columns"].tolist()
            maps = {
                int(key[7:]): EntryMixing.from_array(value) for key, value in arrays.items() if key[:7] == "mixing."
            }
            tensors = ("receiver", "signs", "scale", "offset", "num_entries", "combining_matrix")
            segments.append(
                SegmentReceivers(
                    mixing=GroupMixing(maps) if maps else None,
                    slot=str(arrays["slot"]),
                    columns=(first, last),
                    targets=tuple(arrays["targets"].tolist()),
                    first_use=int(arrays["first_use"]),
                    block_ranges=tuple((a, b) for a, b in arrays["block_ranges"].tolist()),
                    packing="iq" if str(arrays["packing"]) == "iq" else "real",
                    **{key: torch.from_numpy(arrays[key]) for key in tensors},
                )
            )
        grid = ResourceGrid(coherence_symbols, groups, subcarriers)
        return grid, int(archive["prefix"]), int(archive["pilot_symbols"]), tuple(segments)


def read_sums(folder: Path, t: int) -> dict[str, Float[Tensor, " _d"]]:
    """Read the recordings of a round, demodulate them, and apply the receivers: "s" or task -> received sum."""
    recordings = sigmf.read_collection(folder / collection_name(t))
    samples = torch.stack([recording.samples for recording in recordings]).to(torch.complex128)
    return decode_round(samples, *load_receivers(folder / RECEIVERS))


def decoding_error(link: Uplink, received: Aggregate, sums: Mapping[str, Float[Tensor, " _d"]]) -> float:
    """The norm of the difference of decoded sums from the uplink's, relative to that of the uplink's; the largest."""
    columns = slice(None) if received.active_columns is None else slice(*received.active_columns[1])
    expected = {"s": received.shared[columns]} | {task: received.personal[n] for n, task in enumerate(link.task_names)}
    differences = [0.0]
    for target, total in sums.items():
        reference = expected[target][: len(total)].double()
        differences.append(float((total - reference).norm() / reference.norm().clamp_min(1e-300)))
    return max(differences)
