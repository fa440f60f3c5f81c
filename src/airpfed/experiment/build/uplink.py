"""Settings of the radio to an uplink: positions, channels, transceiver design, impairments, powers and noise."""

import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from airpfed.air import geometry
from airpfed.air.channels import build_channel, fading
from airpfed.air.designs import Design
from airpfed.air.grouping import round_blocks
from airpfed.air.impairments import ADC_NOISE, Impairments
from airpfed.air.interference import Interference
from airpfed.air.network import ChannelSite, Network
from airpfed.air.problem import Transceiver, TransceiverProblem, transceiver_fault
from airpfed.air.schedule import DesignFunction, SlotFunction, SlotPlan, Uplink
from airpfed.air.schemes import Scheme
from airpfed.air.slot_errors import ReceivedSums
from airpfed.config.choice import Choice
from airpfed.config.schema import RadioSettings, Settings
from airpfed.core import units
from airpfed.core.errors import UserError
from airpfed.core.memory import check_memory
from airpfed.core.rng import stream
from airpfed.experiment.build.blocks import block_shape, delay_spread_of, plan_blocks

NEAREST_INTERFERER_M = 1.0
"""Least distance of an interferer from the station's antennas: path losses are those beyond a metre."""
MAX_INTERFERENCE_DB = 120.0
"""The most that an interferer may exceed the noise by: the SNR that whitening leaves is good to 1 % then."""

FactorColumns = Mapping[str, tuple[int, int]]
"""Kind of factor -> its first column in a vector and the column after its last."""


def build_uplink(
    settings: Settings,
    task_of: Tensor,
    samples: Tensor,
    kinds: tuple[FactorColumns, FactorColumns],
    lengths: tuple[int, ...],
) -> Uplink:
    """Build the uplink of any devices, in linear SI units.

    task_of: task of each device, shape (K,). samples: D_k, shape (K,). kinds: columns of the s-vector and of the
    p-vectors; each kind of factor is a normaliser group. lengths: length of each task's p-vector.
    """
    radio = settings.radio
    names = tuple(task.name for task in settings.tasks)
    check_channel_memory(radio, len(task_of), len(names), 1)
    plan = plan_blocks(radio, len(task_of))
    network = build_network(radio, settings.run.seed, task_of, len(names))
    power = power_limits(settings, task_of)
    noise = noise_power(radio, network.gain, power)
    return Uplink(
        **scheme_fields(radio),
        correlation=fixed_correlation(radio),
        personal_slots=radio.personal_slots or len(names),
        topology=radio.topology,
        backhaul_bits=radio.backhaul_bits,
        access=radio.access,
        packing=radio.packing,
        normalizer=radio.normalizer,
        task_names=names,
        task_of=task_of,
        samples=samples,
        network=network,
        power_limit=power,
        noise=noise,
        csi_error=radio.csi_error or 0.0,
        estimation=plan.estimation,
        change=plan.change,
        feedback_bits=None if radio.feedback_bits == "exact" else radio.feedback_bits,
        impairments=impairments_of(radio),
        coherence_symbols=plan.data_uses,
        bandwidth_hz=radio.bandwidth_hz,
        subcarriers=radio.subcarriers,
        subcarrier_groups=plan.groups,
        mixing=radio.mixing,
        power_over="symbol" if radio.has_symbol_limit else "slot",
        noise_alpha=radio.noise_alpha,
        interference=interference_of(radio, network, noise),
        receive_clipping=math.inf if radio.receive_clipping == "off" else radio.receive_clipping,
        shared_groups=tuple(kinds[0].values()),
        personal_groups=tuple(kinds[1].values()),
        personal_rows=personal_rows_of(*kinds),
        lengths=lengths,
        seed=settings.run.seed,
        downlink_bits=None if settings.adapters.method.row.averages else settings.server.downlink_bits,
        station_power=None if radio.station_power_dbm is None else units.dbm_to_watts(radio.station_power_dbm),
        amplifier_efficiency=settings.devices.amplifier_efficiency,
        circuit_watts=settings.devices.circuit_watts,
    )


def check_channel_memory(radio: RadioSettings, devices: int, tasks: int, blocks: int) -> None:
    """Raise UserError if the channels of so many coherence blocks exceed the memory.

    Counted are a distance and a mean gain per station and device, four copies of the channel coefficients (estimates,
    true channels, and both per slot) with 16 bytes each, and the taps of a block.
    """
    stations = radio.access_points if radio.layout == "cell_free" else 1 if radio.topology == "single_cell" else tasks
    prefix = fading.cyclic_prefix(radio.subcarriers)
    taps = len(fading.exponential_profile(delay_spread_of(radio) or 0.0, radio.bandwidth_hz, prefix))
    links = 16 * stations * devices
    size = 4.0 * links + links * radio.antennas * (4 * blocks + 2 * taps)
    count = f"{stations} x {radio.antennas} antennas, {devices} devices and {blocks} coherence blocks"
    description = f"radio.antennas = {radio.antennas}: channels of {count}"
    check_memory(description, size, "fewer antennas or devices, or longer coherence_symbols")


def personal_rows_of(shared: FactorColumns, personal: FactorColumns) -> tuple[int, ...]:
    """Return for each p-group the number of the s-group of the same kind of factor, or a new number without one."""
    kinds = [*dict.fromkeys([*shared, *personal])]
    return tuple(kinds.index(kind) for kind in personal)


def build_network(radio: RadioSettings, seed: int, task_of: Tensor, tasks: int) -> Network:
    """Build a drop: stations, devices, mean gains, channels. The seed and `radio.drop` determine it."""
    names = ("drop", radio.drop) if radio.drop else ()
    stations, devices = build_positions(radio, seed, names, task_of, tasks)
    wrap = radio.square_m if radio.layout == "cell_free" else None
    loss = None if radio.path_loss_1m_db == "free_space" else float(radio.path_loss_1m_db)
    distance = geometry.distances(stations, devices, radio.height_m, wrap)
    gain = geometry.log_distance_gain(distance, radio.carrier_hz, radio.path_loss_exponent, loss)
    if radio.shadowing_db:
        apart = geometry.distances(devices, devices, 0.0, wrap)
        shadow = (len(stations), radio.shadowing_db, radio.shadowing_decorrelation_m)
        gain = gain * geometry.shadowing(apart, *shadow, stream(seed, *names, "shadowing"))
    groups, length = block_shape(radio)
    site = ChannelSite(
        stations=stations,
        devices=devices,
        gain=gain,
        antennas=radio.antennas,
        names=names,
        seed=seed,
        carrier_hz=radio.carrier_hz,
        bandwidth_hz=radio.bandwidth_hz,
        subcarriers=radio.subcarriers,
        subcarrier_groups=groups,
        coherence_s=groups * length / radio.bandwidth_hz,
        wrap_m=wrap,
    )
    if radio.has_recorded_channel and radio.scheme.name == "error_free":
        return fading.rayleigh_fading(site)  # nothing is sent, and by other devices than the file's if they are pooled
    return build_channel(radio.channel.name, radio.channel.row, radio.resolved_channel.bind(), site)


def check_recorded_channels(radio: RadioSettings, rounds: int, link: Uplink) -> None:
    """Raise UserError if the channels of a file end before the last of `rounds` rounds does, where that is known.

    It is not known of a scheme's own function, nor of tasks that share slots by their channels.
    """
    if radio.has_recorded_channel and link.design is not None:
        blocks = 1 if link.access == "auto" else round_blocks(link)
        link.network.channel_model(link.seed, rounds, range(blocks - 1, blocks))


def build_positions(
    radio: RadioSettings, seed: int, names: tuple[str | int, ...], task_of: Tensor, tasks: int
) -> tuple[Tensor, Tensor]:
    """Return the positions of stations, shape (S, 2), and of devices, shape (K, 2), in metres."""
    if radio.layout == "cell_free":
        access_points = geometry.in_square(radio.access_points, radio.square_m, stream(seed, *names, "access points"))
        return access_points, geometry.in_square(len(task_of), radio.square_m, stream(seed, *names, "drop"))
    single = radio.topology == "single_cell"
    stations = geometry.on_circle(1 if single else tasks, radio.edge_distance_m)
    distance = geometry.disc_distances(
        len(task_of), radio.cell_radius_m, radio.min_distance_m, stream(seed, *names, "drop")
    )
    offset = distance[:, None] * geometry.directions(len(task_of), stream(seed, *names, "directions"))
    return stations, offset if single else stations[task_of] + offset


def impairments_of(radio: RadioSettings) -> Impairments:
    """Return the impairments of the devices' signals, which are unknown to designs, and the rule of silent devices."""
    return Impairments(
        phase_rad=math.radians(radio.phase_error_deg),
        clipping=None if radio.clipping_db == "off" else units.from_db(radio.clipping_db),
        outage=radio.outage,
        truncation=None if radio.fade_truncation_db == "off" else units.from_db(-radio.fade_truncation_db),
        smoothness=math.inf if radio.amplifier_smoothness == "clip" else radio.amplifier_smoothness,
        carrier_offset_hz=radio.carrier_offset_hz,
        timing_drift=radio.timing_drift_s * radio.bandwidth_hz,
        adc_noise=ADC_NOISE[radio.adc_bits] if radio.adc_bits else 0.0,
    )


def interference_of(radio: RadioSettings, network: Network, noise: float) -> Interference | None:
    """Return the interferers with their mean powers at the station's antennas; None without any.

    A station without a place, of a channel file, is at (0, 0). Raises UserError for an interferer that is too near for
    the path loss, or too strong beside the noise for double precision.
    """
    if not radio.interferers:
        return None
    places = torch.tensor([[each.x_m, each.y_m] for each in radio.interferers], dtype=torch.float64)
    distance = geometry.distances(network.stations[:1].nan_to_num(), places, radio.height_m, None)
    if bool((distance < NEAREST_INTERFERER_M).any()):
        raise UserError(
            f"radio.interferers: number {int(distance.argmin()) + 1} is {float(distance.min()):g} m from the station's "
            f"antennas; should be at least {NEAREST_INTERFERER_M:g} m"
        )
    loss = None if radio.path_loss_1m_db == "free_space" else float(radio.path_loss_1m_db)
    gain = geometry.log_distance_gain(distance, radio.carrier_hz, radio.path_loss_exponent, loss)[0]
    power = torch.tensor([units.dbm_to_watts(each.power_dbm) for each in radio.interferers], dtype=torch.float64)
    load = torch.tensor([each.load for each in radio.interferers], dtype=torch.float64)
    arriving = power * gain * (load > 0)
    loudest = int(arriving.argmax())
    above_db = units.to_db(float(arriving[loudest]) / noise)
    if above_db > MAX_INTERFERENCE_DB:
        raise UserError(
            f"radio.interferers: number {loudest + 1} arrives {above_db:.0f} dB above the noise; should be at most "
            f"{MAX_INTERFERENCE_DB:g} dB, with less power_dbm or further away"
        )
    return Interference(power * gain, load, radio.interference == "known")


def scheme_fields(radio: RadioSettings) -> dict[str, Any]:
    """Return the fields of `Uplink` that depend on the scheme, and on the design if the scheme superposes."""
    scheme: Scheme = radio.scheme.row
    if scheme.superposes:
        design = radio.design
        return design_fields(radio, design.row, checked_design(f'radio.design = "{design.label}"', design))
    return {
        "send": partial(checked_send, f'radio.scheme = "{radio.scheme.label}"', radio.scheme.bind()),
        "cost": None if scheme.cost is None else partial(scheme.cost, **radio.scheme.options),
        "unsent": None if scheme.unsent is None else partial(scheme.unsent, **radio.scheme.options),
        "design": None,
        "biased": scheme.claimed_mean(radio.scheme.options) != "given the channel",
        "batched": False,
        "refine": None,
        "rescale": False,
    }


def design_fields(radio: RadioSettings, row: Design, solve: DesignFunction) -> dict[str, Any]:
    """Return the fields of `Uplink` for a slot that a design superposes. solve: the row's function with its options."""
    return {
        "send": None,
        "cost": None,
        "design": solve,
        "biased": row.unbiased != "given the channel",
        "batched": row.batched,
        "refine": row.share_energy if radio.energy == "per_round" else None,
        "rescale": row.shrinks and radio.correlation != "none",
    }


def checked_send(source: str, send: SlotFunction, link: Uplink, slot: SlotPlan, t: int) -> ReceivedSums:
    """Call a scheme's function; raise UserError if it returns anything but sums. source: what messages begin with."""
    sums = send(link, slot, t)
    if not isinstance(sums, ReceivedSums):
        raise UserError(f"{source}: should return ap.received_sums(link, slot, estimates), not {type(sums).__name__}")
    shape = len(slot.combining_matrix), slot.vectors.shape[1]
    if tuple(sums.sums.shape) != shape or not bool(sums.sums.isfinite().all()):
        raise UserError(
            f"{source}: sums should be finite numbers of shape {shape}, not of shape {tuple(sums.sums.shape)}"
        )
    return sums


def checked_design(source: str, choice: Choice) -> DesignFunction:
    """Return a design's function with its options set, which raises UserError if its result is no transceiver.

    source: what messages begin with.
    """
    solve = choice.bind()
    try:
        inspect.signature(choice.row.solve).bind(object(), **choice.options)
    except TypeError as error:
        raise UserError(f"{source}: should take one argument, the problem, and options ({error})") from None

    def design(problem: TransceiverProblem) -> Transceiver:
        transceiver: Transceiver = solve(problem)
        if fault := transceiver_fault(problem, transceiver):
            raise UserError(f"{source}: {fault}")
        return transceiver

    return design


def fixed_correlation(radio: RadioSettings) -> float | None:
    """Return the correlation of symbols that receivers assume, or None if they estimate it."""
    if isinstance(radio.correlation, str):
        return 0.0 if radio.correlation == "none" else None
    return radio.correlation


def power_limits(settings: Settings, task_of: torch.Tensor) -> torch.Tensor:
    """Return the power limit of each device in watts, shape (K,): that of its task, or else the radio's."""
    power = torch.full((len(task_of),), units.dbm_to_watts(settings.radio.power_dbm), dtype=torch.float64)
    for n, task in enumerate(settings.tasks):
        if task.power_dbm is not None and not settings.adapters.method.row.pooled:
            count = int((task_of == n).sum())
            limits = task.power_dbm if isinstance(task.power_dbm, tuple) else (task.power_dbm,) * count
            if len(limits) != count:
                key = f"tasks.{task.name}.power_dbm"
                raise UserError(f"{key} has {len(limits)} values: should be one, or {count}, one a device")
            power[task_of == n] = torch.tensor([units.dbm_to_watts(limit) for limit in limits], dtype=torch.float64)
    return power


def noise_power(radio: RadioSettings, gain: torch.Tensor, power: torch.Tensor) -> float:
    """Return the noise power over the band in watts. `snr_db`, if given, sets it for the median device."""
    if radio.snr_db is not None:
        return geometry.noise_for_snr(gain, power, units.from_db(radio.snr_db))
    if radio.noise_dbm == "off":
        return 0.0
    if radio.noise_dbm == "thermal":
        return units.thermal_noise_watts(radio.bandwidth_hz, radio.noise_figure_db)
    return units.dbm_to_watts(radio.noise_dbm)
