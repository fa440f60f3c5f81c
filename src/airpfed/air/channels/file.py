"""Channels from a file: of a measurement, of ray tracing (the extra airpfed[rt]), or exported from another model.

A file ends in .npz or .mat. Its key `h` holds complex amplitudes (rounds, blocks, M, K); |h|^2 is a power gain. Of the
other keys, which may all be absent, `gain` holds mean power gains (S, K), or (K) for one station.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Complex, Float
from pydantic import Field
from torch import Tensor

from airpfed.air.network import ChannelSite, Network
from airpfed.core.errors import UserError, first_line
from airpfed.core.files import write_atomic
from airpfed.core.memory import check_memory
from airpfed.core.rng import stream
from airpfed.core.units import SPEED_OF_LIGHT, to_db

KEYS = ("h", "gain", "los", "scattered", "stations", "devices")
"""The arrays of a channel file; the first is required."""
SITE_NUMBERS = ("carrier_hz", "bandwidth_hz", "subcarriers", "subcarrier_groups", "coherence_s")
"""Numbers of a channel file that should be those of the settings, where the file has them."""
MAX_SCALE_DB = 20.0
"""Largest distance of the mean power of `h` from the file's mean gains, over all stations and devices."""
ABOVE_DB, BELOW_DB = 20.0, 50.0
"""How far a device's mean power may be above and below its mean gain: of one Rayleigh coefficient, the first has the
probability exp(-100) and the second 1e-5."""
LOS_ABOVE_DB = 50.0
"""How far the power of a device's line of sight may be above that of its channel: scattered waves of equal power leave
so little of one coefficient with a probability of 4e-6."""
MIN_GAIN = 1e-100
"""A device's least mean power gain; products of a few smaller ones vanish in double precision."""
MAX_USES = 10**12
"""The most channel uses of a block, as of `radio.coherence_symbols`."""
NEAR_M = 0.1
"""A mean gain above that of free space over so many metres, and no key `gain`, are of channels without a scale."""


@dataclass(frozen=True)
class ChannelFile:
    """The content of a channel file.

    h: complex amplitudes, mapped into memory from an uncompressed .npz. power: the mean of |h|^2 over rounds and
    blocks. los: the part of h that needs no estimation, of shape (M, K) or that of h; None for no such part.
    los_power: the mean of |los|^2, as `power`. arrays: other keys of the file.
    """

    source: str
    h: Complex[np.ndarray, "rounds blocks M K"]
    power: Float[np.ndarray, "M K"]
    los: Complex[np.ndarray, "..."] | None
    los_power: Float[np.ndarray, "M K"]
    arrays: Mapping[str, np.ndarray]


def file_channels(
    site: ChannelSite,
    *,
    path: Annotated[str, Field(description="a file .npz or .mat with channels h (rounds, blocks, antennas, devices)")],
    repeat: Annotated[
        bool, Field(description="begin again with the file's first round or block where it ends; false: refuse")
    ] = False,
) -> Network:
    """Channels from a file, the same for every seed, with the mean gains that the file gives or has.

    Round t is the t-th of the file. Round 0, of studies, takes its blocks for draws: block i of drop n is draw max(n,
    1) - 1 + i, and draw j is of round j mod R and block j // R for R rounds. Another seed than the site's, with which
    the theory draws a round again, selects a random round of the file. Raises UserError for a file that cannot be read
    or does not fit the site; drawing raises it beyond the last round or block.
    """
    file = load_channel_file(path)
    check_site(file, site)
    stations = len(site.stations)
    measured = file.power.reshape(stations, site.antennas, -1).mean(1)
    gain = mean_gains(file, "gain", measured)
    if gain is None:
        gain = measured
        check_absolute_scale(file, site, measured)
    else:
        check_scale(file, measured, gain)
    if bool((gain.sum(0) < MIN_GAIN).any()):
        device = int((gain.sum(0) < MIN_GAIN).argmax())
        raise UserError(
            f"{file.source}: device {device} has no channel but 0, or less than {MIN_GAIN:g}; leave it out of file and "
            "settings"
        )
    of_sight = file.los_power.reshape(stations, site.antennas, -1).mean(1)
    check_devices(file, "h", measured.sum(0), "gain", gain.sum(0), (-BELOW_DB, ABOVE_DB))
    check_devices(file, "los", of_sight.sum(0), "h", measured.sum(0), (-math.inf, LOS_ABOVE_DB))
    scattered = mean_gains(file, "scattered", measured)
    if scattered is not None:
        check_devices(file, "scattered", scattered.sum(0), "gain", gain.sum(0), (-math.inf, ABOVE_DB))
    elif file.los is not None:
        scattered = (gain - of_sight).clip(min=0.0)
    positions = (position_of(file, "stations", stations), position_of(file, "devices", len(site.devices)))
    drop = next((name for name in site.names if isinstance(name, int)), 0)
    return Network(
        stations=positions[0],
        devices=positions[1],
        gain=torch.from_numpy(gain),
        antennas=site.antennas,
        names=site.names,
        scattered=torch.from_numpy(gain if scattered is None else scattered),
        channel_model=partial(stored_channels, file, repeat, site.seed, site.names, drop),
    )


def blocks_of_file(
    bandwidth_hz: float, subcarriers: int, *, path: str, repeat: bool = False
) -> tuple[int | None, int | None]:
    """Return (groups of subcarriers, channel uses of a block) of a channel file, None for what it does not say.

    Raises UserError for a file that cannot be read, and for numbers that give no blocks.
    """
    file = load_channel_file(path)
    numbers: dict[str, float] = {}
    for key in ("subcarrier_groups", "coherence_s"):
        if key in file.arrays:
            numbers[key] = number_of(file, key)
    groups = numbers.get("subcarrier_groups", 1.0)
    if subcarriers % groups:
        raise UserError(
            f"{file.source}: subcarrier_groups = {groups:g} should divide radio.subcarriers = {subcarriers}"
        )
    if "coherence_s" in numbers:
        uses = max(1, round(numbers["coherence_s"] * bandwidth_hz / groups))
        if uses > MAX_USES:
            raise UserError(
                f"{file.source}: coherence_s gives blocks of {uses:.3g} uses; should be at most {MAX_USES:g}"
            )
        return int(groups), uses
    return int(groups) if "subcarrier_groups" in numbers else None, None


def stored_channels(
    file: ChannelFile, repeat: bool, site_seed: int, names: tuple[str | int, ...], drop: int, seed: int, t: int,
    blocks: range,
) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:  # fmt: skip
    """A `ChannelModel` that reads rounds and blocks as `file_channels` says.

    Random: the round, for another seed than the site's, from the stream (seed, names, "file", t).
    """
    rounds, stored = file.h.shape[:2]
    rows, columns, problem = [t - 1] * len(blocks), list(blocks), ""
    if seed != site_seed:
        rows = [int(torch.randint(rounds, (), generator=stream(seed, *names, "file", t)))] * len(blocks)
    elif t == 0:
        draws = [max(drop, 1) - 1 + block for block in blocks]
        rows, columns = [draw % rounds for draw in draws], [draw // rounds for draw in draws]
        problem = f"draw {draws[-1] + 1} is beyond these {rounds * stored}" if draws[-1] >= rounds * stored else ""
    elif t > rounds:
        problem = f"round {t} needs one of its own"
    if not problem and columns[-1] >= stored:
        problem = f"round {t} needs {columns[-1] + 1}"
    if problem and not repeat:
        raise UserError(
            f"{file.source}: h has {count(rounds, 'round')} of {count(stored, 'block')}, and {problem}; a longer file, "
            "or the option repeat = true, would be right"
        )
    index = np.array(rows, dtype=int) % rounds, np.array(columns, dtype=int) % stored
    h = torch.from_numpy(np.asarray(file.h[index], dtype=np.complex128))
    if file.los is None:
        return h, torch.zeros((), dtype=h.dtype).expand(h.shape)
    los = file.los[index] if file.los.ndim == 4 else np.broadcast_to(file.los, h.shape)
    return h, torch.from_numpy(np.array(los, dtype=np.complex128))


def count(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# What a file should hold


def check_site(file: ChannelFile, site: ChannelSite) -> None:
    """Raise UserError unless the file's antennas, devices and numbers are those of the site."""
    antennas, devices = file.h.shape[2:]
    stations = len(site.stations)
    if devices != len(site.devices):
        raise UserError(f"{file.source}: h is for {count(devices, 'device')}, and the tasks have {len(site.devices)}")
    if antennas != stations * site.antennas:
        raise UserError(
            f"{file.source}: h is for {count(antennas, 'antenna')}, and the settings have {stations * site.antennas} "
            f"({count(stations, 'station')} of radio.antennas = {site.antennas})"
        )
    for key in SITE_NUMBERS:
        if key not in file.arrays:
            continue
        value, wanted = number_of(file, key), float(getattr(site, key))
        # A time is rounded to uses of every group.
        slack = 0.5 * site.subcarrier_groups / site.bandwidth_hz if key == "coherence_s" else 0.0
        if not abs(value - wanted) <= slack:
            raise UserError(
                f"{file.source}: {key} is {value:g} in the file and {wanted:g} in the settings; make them equal, or "
                "leave the key out of the file"
            )


def mean_gains(file: ChannelFile, key: str, measured: Float[np.ndarray, "S K"]) -> Float[np.ndarray, "S K"] | None:
    """The mean gains of a key, None if the file has none. Raises UserError if they are no power gains."""
    gain = file.arrays.get(key)
    if gain is None:
        return None
    if gain.shape != measured.shape and not (len(measured) == 1 and gain.size == measured.size):
        right = f"(stations, devices) = {measured.shape}" + (f" or ({measured.size},)" if len(measured) == 1 else "")
        raise UserError(f"{file.source}: {key} has the shape {gain.shape}; should be {right}")
    if gain.dtype.kind not in "fiu" or not np.isfinite(gain).all() or (gain < 0).any():
        raise UserError(f"{file.source}: {key} should hold linear power gains, finite and not below 0 (no decibels)")
    return np.array(gain, dtype=np.float64).reshape(measured.shape)


def number_of(file: ChannelFile, key: str) -> float:
    """A number of the file. Raises UserError for anything but one number above 0."""
    value = file.arrays[key]
    if value.size != 1 or value.dtype.kind not in "fiu" or not 0 < float(value.reshape(-1)[0]) < 1e15:
        raise UserError(f"{file.source}: {key} should be a number above 0")
    return float(value.reshape(-1)[0])


def check_devices(
    file: ChannelFile,
    key: str,
    power: Float[np.ndarray, " K"],
    reference: str,
    expected: Float[np.ndarray, " K"],
    limits: tuple[float, float],
) -> None:
    """Raise UserError if a device's power, over all stations, is out of limits, in dB, of the one to expect of it."""
    decibels = 10 * (np.log10(np.maximum(power, 1e-300)) - np.log10(np.maximum(expected, 1e-300)))
    far = (decibels < limits[0]) | (decibels > limits[1])
    if far.any():
        device = int(far.argmax())
        own, other = (to_db(max(float(values[device]), 1e-300)) for values in (power, expected))
        raise UserError(
            f"{file.source}: {key} of device {device} has a mean power of {own:.1f} dB, and its {reference} of "
            f"{other:.1f} dB; they should be power gains of the same size"
        )


def check_scale(file: ChannelFile, measured: Float[np.ndarray, "S K"], gain: Float[np.ndarray, "S K"]) -> None:
    """Raise UserError if the mean power of h is far from the file's mean gains, over all stations and devices."""
    power, expected = float(measured.mean()), float(gain.mean())
    if not 1e-300 < power < math.inf or not expected > 0 or abs(to_db(power / expected)) > MAX_SCALE_DB:
        raise UserError(
            f"{file.source}: h has a mean power of {to_db(max(power, 1e-300)):.1f} dB, and the mean of gain is "
            f"{to_db(max(expected, 1e-300)):.1f} dB; |h|^2 should be a power gain of that size"
        )


def check_absolute_scale(file: ChannelFile, site: ChannelSite, measured: Float[np.ndarray, "S K"]) -> None:
    """Raise UserError if h without a key `gain` is stronger than antennas NEAR_M apart, as normalised channels are."""
    limit = min(1.0, (SPEED_OF_LIGHT / (4 * math.pi * NEAR_M * site.carrier_hz)) ** 2)
    if measured.max() > limit:
        raise UserError(
            f"{file.source}: h has a mean power of {to_db(float(measured.max())):.1f} dB, above that of free space "
            f"over {NEAR_M} m ({to_db(limit):.1f} dB); h should be amplitudes relative to the sent ones, or the file "
            "should give its mean power as gain"
        )


def position_of(file: ChannelFile, key: str, count: int) -> Float[Tensor, "P 2"]:
    """The positions of a key, metres; NaN if the file has none."""
    positions = file.arrays.get(key)
    if positions is None:
        return torch.full((count, 2), math.nan, dtype=torch.float64)
    if positions.shape != (count, 2) or positions.dtype.kind not in "fiu":
        raise UserError(f"{file.source}: {key} has the shape {positions.shape}; should be ({count}, 2), metres")
    return torch.from_numpy(np.array(positions, dtype=np.float64))


# Reading


def load_channel_file(path: str) -> ChannelFile:
    """Read a channel file and check its content; once for as long as the file stays the same."""
    source = f"radio.channel.path: {path}"
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return _load(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _load(path: str, mtime_ns: int, size: int) -> ChannelFile:
    source, ending = f"radio.channel.path: {path}", Path(path).suffix.lower()
    if ending not in (".npz", ".mat"):
        raise UserError(f"{source}: should be a file that ends in .npz or .mat")
    try:
        arrays = read_npz(Path(path)) if ending == ".npz" else read_mat(Path(path))
    except UserError:
        raise
    except NotImplementedError:  # scipy's answer to a file of MATLAB's HDF5 format
        raise UserError(f"{source}: a file of MATLAB's version 7.3; save it with '-v7', or as .npz") from None
    except Exception as error:  # the readers raise many kinds for damaged files
        raise UserError(f"{source}: cannot be read as {ending}: {first_line(error)}") from None
    if "h" not in arrays:
        names = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{source}: has no key h, the channels; it holds {names}")
    h = padded(arrays.pop("h"), 4, ending)
    if h.dtype.kind != "c":
        raise UserError(f"{source}: h is {h.dtype}; should be complex amplitudes")
    if h.ndim != 4 or 0 in h.shape:
        raise UserError(f"{source}: h has the shape {h.shape}; should be (rounds, blocks, antennas, devices)")
    power = np.zeros(h.shape[2:])
    for t, of_round in enumerate(h):  # one at a time: h may be larger than memory
        part = np.square(np.abs(of_round.astype(np.complex128))).mean(0)
        if not np.isfinite(part).all():
            raise UserError(f"{source}: h has infinities or NaN in round {t + 1} of {len(h)}")
        power += part / len(h)
    los, los_power = arrays.pop("los", None), np.zeros_like(power)
    if los is not None:
        los = padded(los, 2, ending)
        if los.shape not in (h.shape, h.shape[2:]) or los.dtype.kind != "c" or not np.isfinite(los).all():
            raise UserError(
                f"{source}: los is {los.dtype} {los.shape}; should be finite, complex and of shape {h.shape[2:]} or "
                f"{h.shape}"
            )
        los_power = np.square(np.abs(los)).reshape(-1, *power.shape).mean(0)
    return ChannelFile(source, h, power, los, los_power, arrays)


def padded(array: np.ndarray, dimensions: int, ending: str) -> np.ndarray:
    """Give an array of MATLAB, which drops last dimensions of 1, its dimensions back."""
    missing = dimensions - array.ndim if ending == ".mat" else 0
    return array.reshape(array.shape + (1,) * missing) if missing > 0 else array


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz; h is mapped into memory if it is not compressed.

    Of arrays that no channel file has, there is only the name.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
    mapped = "h" in members and members["h"].compress_type == zipfile.ZIP_STORED
    if "h" in members and not mapped:
        check_memory(f"{path}: h", float(members["h"].file_size), "a file of numpy.savez, without compression")
    with np.load(path, allow_pickle=False) as content:
        names = [name for name in members if name in (*KEYS, *SITE_NUMBERS) and not (mapped and name == "h")]
        arrays = dict.fromkeys(members, np.zeros(0)) | {name: content[name] for name in names}
    return arrays | {"h": map_member(path, members["h"])} if mapped else arrays


def map_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Map an uncompressed array of a .npz into memory."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)  # a local header of the zip format; name and extra field follow
        file.seek(member.header_offset + len(header) + sum(struct.unpack("<HH", header[26:30])))
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("h holds objects of Python")
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .mat of MATLAB's versions 4 to 7, as `read_npz` does."""
    from scipy.io import loadmat, whosmat

    names = {name: shape for name, shape, _ in whosmat(str(path), appendmat=False)}
    if "h" in names:
        check_memory(f"{path}: h", 16.0 * math.prod(names["h"]), "a .npz of numpy.savez, which is read in parts")
    content = loadmat(str(path), appendmat=False, variable_names=[*KEYS, *SITE_NUMBERS])
    arrays = {name: value for name, value in content.items() if not name.startswith("__")}
    if faulty := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{faulty[0]} is no full array")
    return dict.fromkeys(names, np.zeros(0)) | arrays


# Writing


def save_channel_file(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an uncompressed .npz or as a .mat of MATLAB's version 5, by the path's ending."""
    content = io.BytesIO()
    try:
        if path.suffix.lower() == ".mat":
            from scipy.io import savemat

            savemat(content, dict(arrays), oned_as="row")
        else:
            np.savez(content, **arrays)  # type: ignore[arg-type]
    except (ValueError, OverflowError) as error:  # an array beyond 4 GB
        raise UserError(f"{path}: cannot hold these channels: {first_line(error)}; should be a .npz") from None
    write_atomic(path, content.getvalue())


def channel_arrays(network: Network, seed: int, rounds: int, blocks: int) -> dict[str, np.ndarray]:
    """Draw the channels of rounds 1 to `rounds`, and return the arrays of a channel file that gives them back.

    Draws are those of a run that uses so many blocks in each round; impairments and estimates are not part of them.
    """
    parts = [network.channel_model(seed, t, range(blocks)) for t in range(1, rounds + 1)]
    h, los = (torch.stack([part[index] for part in parts]).numpy() for index in (0, 1))
    arrays = {"h": h, "gain": network.gain.numpy()}
    if los.any():
        arrays["los"] = los[0, 0] if (los == los[0, 0]).all() else los
    if not torch.equal(network.scattered, network.gain):
        arrays["scattered"] = network.scattered.numpy()
    for key in ("stations", "devices"):
        positions = getattr(network, key)
        if bool(positions.isfinite().all()):
            arrays[key] = positions.numpy()
    return arrays
