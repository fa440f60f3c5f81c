"""The radio's settings to objects: where devices are, what channels are, what designs and impairments there are."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from airpfed.air import geometry
from airpfed.air.channels import fading, three_gpp
from airpfed.air.designs import BATCHED, design_of, refine_of
from airpfed.air.impairments import Impairments
from airpfed.air.network import Network
from airpfed.air.schedule import Digital, Uplink
from airpfed.config.schema import RadioSettings, Settings
from airpfed.core import units
from airpfed.core.errors import UserError
from airpfed.core.memory import fits
from airpfed.core.rng import stream

UNBIASED = ("error_free", "digital", "uniform_forcing")
"""Designs that claim E Ghat = G, which (39) to (43) need, where devices are not impaired."""

Kinds = Mapping[str, tuple[int, int]]
"""Kind of factor -> its columns in a vector."""


def link(
    settings: Settings,
    task_of: Tensor,
    samples: Tensor,
    kinds: tuple[Kinds, Kinds],
    lengths: tuple[int, ...],
) -> Uplink:
    """The radio side of any devices, in linear SI units.

    samples: D_k. kinds: kind of factor -> its columns, a normaliser group, of the s- and the p-vectors; lengths: of
    each task's p-vector.
    """
    radio = settings.radio
    names = tuple(task.name for task in settings.tasks)
    room(radio, len(task_of), len(names), 1)
    place = network(radio, settings.run.seed, task_of, len(names))
    power = limits(settings, task_of)
    return Uplink(
        **design_fields(radio, radio.design),
        correlation=believed_of(radio),
        personal_slots=radio.personal_slots or len(names),
        topology=radio.topology,
        backhaul_bits=radio.backhaul_bits,
        access=radio.access,
        packing=radio.packing,
        normalizer=radio.normalizer,
        task_names=names,
        task_of=task_of,
        samples=samples,
        network=place,
        power=power,
        noise=noise_watts(radio, place.gain, power),
        csi_error=radio.csi_error,
        impairments=harm_of(radio),
        coherence_symbols=radio.coherence_symbols,
        bandwidth_hz=radio.bandwidth_hz,
        subcarriers=radio.subcarriers,
        shared_groups=tuple(kinds[0].values()),
        personal_groups=tuple(kinds[1].values()),
        personal_rows=rows_of(*kinds),
        lengths=lengths,
        seed=settings.run.seed,
    )


def room(radio: RadioSettings, devices: int, tasks: int, blocks: int) -> None:
    """UserError where the channels of so many blocks cannot fit into memory: as estimated, as they are, cut to slots.

    A place and a mean gain a station and device, 16 bytes a channel coefficient, and a block's taps.
    """
    stations = radio.access_points if radio.layout == "cell_free" else 1 if radio.topology == "single_cell" else tasks
    taps = len(fading.exponential_profile(radio.delay_spread_s, radio.bandwidth_hz, max(1, radio.subcarriers // 14)))
    links = 16 * stations * devices
    wanted = 4.0 * links + links * radio.antennas * (4 * blocks + 2 * taps)
    many = f"{stations} x {radio.antennas} antennas, {devices} devices"
    what = f"radio.antennas = {radio.antennas}: channels of {many} and {blocks} coherence blocks"
    fits(what, wanted, "fewer antennas or devices, or longer coherence_symbols")


def rows_of(shared: Kinds, personal: Kinds) -> tuple[int, ...]:
    """For each p-group the number of the s-group of the same kind of factor, or one of its own if there is none."""
    kinds = [*dict.fromkeys([*shared, *personal])]
    return tuple(kinds.index(kind) for kind in personal)


def network(radio: RadioSettings, seed: int, task_of: Tensor, tasks: int) -> Network:
    """A drop: stations, devices, mean gains, channels. The drop is fixed by the seed and `radio.drop`."""
    names = ("drop", radio.drop) if radio.drop else ()
    stations, devices = places(radio, seed, names, task_of, tasks)
    wrap = radio.square_m if radio.layout == "cell_free" else None
    loss = None if radio.path_loss_1m_db == "free_space" else float(radio.path_loss_1m_db)
    distance = geometry.distances(stations, devices, radio.height_m, wrap)
    gain = geometry.log_distance_gain(distance, radio.carrier_hz, radio.path_loss_exponent, loss)
    if radio.shadowing_db:
        apart = geometry.distances(devices, devices, 0.0, wrap)
        shadow = (len(stations), radio.shadowing_db, radio.shadowing_decorrelation_m)
        gain = gain * geometry.shadowing(apart, *shadow, stream(seed, *names, "shadowing"))
    return channels(radio, seed, Network(stations, devices, gain, gain, radio.antennas, nowhere, names), wrap)


def nowhere(_seed: int, _t: int, _blocks: range) -> tuple[Tensor, Tensor]:
    """The fading of a world that has none yet."""
    raise NotImplementedError


def places(
    radio: RadioSettings, seed: int, names: tuple[str | int, ...], task_of: Tensor, tasks: int
) -> tuple[Tensor, Tensor]:
    """Stations (S, 2) and devices (K, 2) in metres."""
    if radio.layout == "cell_free":
        points = radio.access_points, len(task_of)
        kinds = ("access points", "drop")
        found = [
            geometry.in_square(count, radio.square_m, stream(seed, *names, kind))
            for count, kind in zip(points, kinds, strict=True)
        ]
        return found[0], found[1]
    single = radio.topology == "single_cell"
    stations = geometry.on_circle(1 if single else tasks, radio.edge_distance_m)
    away = geometry.disc_distances(
        len(task_of), radio.cell_radius_m, radio.min_distance_m, stream(seed, *names, "drop")
    )
    offset = away[:, None] * geometry.directions(len(task_of), stream(seed, *names, "directions"))
    return stations, offset if single else stations[task_of] + offset


def channels(radio: RadioSettings, seed: int, place: Network, wrap_m: float | None) -> Network:
    """A world with the fading of `radio.channel`."""
    carrier = radio.carrier_hz
    coherence_s = radio.subcarrier_groups * radio.coherence_symbols / radio.bandwidth_hz
    centres = fading.frequencies(radio.subcarrier_groups, radio.subcarriers)
    sounding = three_gpp.SionnaChannel(None, None, centres * radio.bandwidth_hz, coherence_s, place.names)
    if radio.channel in three_gpp.SCENARIOS:
        return three_gpp.scenario(radio.channel, place, seed, carrier, radio.speed_mps, sounding)
    if radio.channel in three_gpp.PROFILES:
        return three_gpp.profile(radio.channel, place, carrier, radio.delay_spread_s, radio.speed_mps, sounding)
    k_factor = units.from_db(radio.rician_k_db) if radio.channel == "rician" else 0.0
    apart = geometry.offsets(place.stations, place.devices, wrap_m)
    parameters = fading.FadingParameters(
        gain=place.gain / (1 + k_factor),
        antennas=radio.antennas,
        los=fading.line_of_sight(place.gain, apart, radio.antennas, k_factor, carrier),
        profile=fading.exponential_profile(radio.delay_spread_s, radio.bandwidth_hz, max(1, radio.subcarriers // 14)),
        centres=centres,
        follow=radio.time_correlation,
        renew=radio.round_correlation,
        names=place.names,
    )
    fields = {**vars(place), "scattered": parameters.gain, "fade": partial(fading.fade, parameters)}
    return Network(**fields)


def harm_of(radio: RadioSettings) -> Impairments:
    """What becomes of devices' signals that designs do not know of, and which devices keep silent."""
    clipping = None if radio.clipping_db == "off" else units.from_db(radio.clipping_db)
    truncation = None if radio.fade_truncation_db == "off" else units.from_db(-radio.fade_truncation_db)
    return Impairments(math.radians(radio.phase_error_deg), clipping, radio.outage, truncation)


def design_fields(radio: RadioSettings, name: str) -> dict[str, Any]:
    """The fields of `Uplink` that a design decides, with the settings' options."""
    truncation = None if radio.truncation == "best" else radio.truncation
    return {
        "design": design_of(name, truncation, radio.debias, radio.starts),
        "biased": name not in UNBIASED,
        "bundles": name in BATCHED,
        "refine": refine_of(name, radio.energy, radio.debias),
        "rescale": name == "mmse" and not radio.debias and radio.correlation != "none",
        "digital": Digital(radio.digital_bits, radio.digital_access == "spatial") if name == "digital" else None,
    }


def believed_of(radio: RadioSettings) -> float | None:
    """The correlation that receivers expect from the start; None: they estimate it."""
    fixed = {"none": 0.0, "estimated": None}
    return fixed[radio.correlation] if isinstance(radio.correlation, str) else radio.correlation


def limits(settings: Settings, task_of: torch.Tensor) -> torch.Tensor:
    """Power limit of every device in watts: its task's own, one for all its devices or one each, or the radio's."""
    power = torch.full((len(task_of),), units.dbm_to_watts(settings.radio.power_dbm), dtype=torch.float64)
    for n, task in enumerate(settings.tasks):
        if task.power_dbm is not None and settings.adapters.method != "centralised":
            count = int((task_of == n).sum())
            own = task.power_dbm if isinstance(task.power_dbm, tuple) else (task.power_dbm,) * count
            if len(own) != count:
                where = f"tasks.{task.name}.power_dbm"
                raise UserError(f"{where} has {len(own)} values: should be one, or {count}, one a device")
            power[task_of == n] = torch.tensor([units.dbm_to_watts(one) for one in own], dtype=torch.float64)
    return power


def noise_watts(radio: RadioSettings, gain: torch.Tensor, power: torch.Tensor) -> float:
    """Noise power over the band; `snr_db`, if given, sets it from the median device."""
    if radio.snr_db is not None:
        return geometry.noise_for_snr(gain, power, units.from_db(radio.snr_db))
    if radio.noise_dbm == "off":
        return 0.0
    if radio.noise_dbm == "thermal":
        return units.thermal_noise_watts(radio.bandwidth_hz, radio.noise_figure_db)
    return units.dbm_to_watts(radio.noise_dbm)
