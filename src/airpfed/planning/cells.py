"""Cells for notebooks: positions, channels and design problems that mean what a settings file of the same keys means.

Numbers are in dBm, ratios in dB and distances in metres here; everything that a network returns is linear, in watts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from typing import Any, Literal, SupportsIndex

from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.problem import TransceiverProblem
from airpfed.air.schedule import Uplink, schedule
from airpfed.air.segments import problem_of
from airpfed.config.applicability import refuse_ineffective
from airpfed.config.grid import check_count
from airpfed.config.schema import FLAT_USES, Settings
from airpfed.config.settings_file import parse_settings
from airpfed.core.errors import UserError, hint
from airpfed.experiment.build.uplink import check_channel_memory
from airpfed.planning.channel_study import full_updates
from airpfed.planning.link_study import link_of

Number = int | float
Counts = int | Iterable[int] | Mapping[str, int]
"""Devices of one task, of each task, or of each task by its name."""
Numbers = Number | Iterable[Number | Iterable[Number]]
"""A number for all devices, one for each task, or for each of its devices."""


@dataclass(frozen=True, repr=False)
class RadioNetwork:
    """A drop of devices around their stations, with its channels and the design problems of its slots.

    `single_cell`, `multi_cell` and `cell_free` make one. settings: what a settings file with the same keys gives.
    samples: D_k, if given for every device; None for those of the settings.

    >>> import airpfed as ap
    >>> network = ap.single_cell(devices=[4, 4], antennas=8, snr_db=10)
    >>> network
    RadioNetwork(8 devices of 2 tasks, 1 station of 8 antennas, rayleigh, median SNR 10 dB)
    >>> network.replace(snr_db=0, channel="rician(k_db=5)")
    RadioNetwork(8 devices of 2 tasks, 1 station of 8 antennas, rician(k_db=5.0), median SNR 0 dB)
    """

    settings: Settings
    samples: tuple[float, ...] | None = None

    @cached_property
    def link(self) -> Uplink:
        """The uplink of `air/`: positions, mean gains, power limits, noise and samples, all linear."""
        return link_of(self.settings, self.samples)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return self.link.task_names

    @property
    def gain(self) -> Float[Tensor, "S K"]:
        """The mean power gain from each device to an antenna of each station, linear."""
        return self.link.network.gain

    @property
    def stations(self) -> Float[Tensor, "S 2"]:
        """The positions of the stations, metres."""
        return self.link.network.stations

    @property
    def devices(self) -> Float[Tensor, "K 2"]:
        """The positions of the devices, metres."""
        return self.link.network.devices

    def channels(self, t: int, blocks: int) -> Complex[Tensor, "B M K"]:
        """Draw the true channels of the first coherence blocks of round t, linear amplitude.

        Random: fading, and phases and outages if the network has them, fixed by seed, drop, t and block.

        >>> import airpfed as ap
        >>> network = ap.single_cell(devices=[4, 4], antennas=8)
        >>> h = network.channels(t=1, blocks=5)
        >>> h.shape, h.dtype
        (torch.Size([5, 8, 8]), torch.complex128)
        >>> network.channels(t=1, blocks=2).equal(h[:2])
        True
        """
        return self._draw(t, blocks)[1]

    def estimates(self, t: int, blocks: int) -> Complex[Tensor, "B M K"]:
        """Draw the channel estimates that receivers have of `channels(t, blocks)`.

        Random: as `channels`, and the estimation errors if `csi_error` is above 0.

        >>> import airpfed as ap
        >>> network = ap.single_cell(devices=[4, 4], antennas=8, csi_error=0.1)
        >>> error = network.estimates(1, 5) - network.channels(1, 5)
        >>> float((error.abs() ** 2 / network.gain).mean().round(decimals=1))
        0.1
        """
        return self._draw(t, blocks)[0]

    def problem(self, round: int = 0, blocks: int = 8, target: str | SupportsIndex | None = None) -> TransceiverProblem:
        """Return the design problem of a slot in which all devices take part, over the first blocks of a round.

        target: "s" (the default) for the sum of all devices; a task's name or number for the sum of its devices alone;
        "p" for the sums of all tasks in one slot; "s+p" for all sums in one slot. Weights are D_k over the samples of
        the sum. The problem holds estimates, so that `mse` is the error that a design expects. With interferers its
        antennas are combinations of those of `channels`, which whiten interference of known covariance.

        >>> import airpfed as ap
        >>> network = ap.single_cell(devices=[4, 2], antennas=8, snr_db=10)
        >>> network.problem(blocks=5).weights.shape, network.problem(blocks=5, target="p").weights.shape
        (torch.Size([1, 6]), torch.Size([2, 6]))
        >>> network.problem(blocks=5, target=1).h.shape
        torch.Size([5, 8, 2])
        """
        self._check_blocks(blocks)
        channels = self.link.received_channels(round, blocks)
        groups = {"s": (), "p": (tuple(range(len(self.tasks))),), "s+p": (tuple(range(len(self.tasks))),)}
        grouping = groups.get("s" if target is None else str(target))
        if grouping is None:
            grouping = ((self._task_number(target),),)
        link = replace(self.link, access="superposed" if target == "s+p" else "concurrent")
        slots = schedule(link, full_updates(link), grouping)
        selected = [slot for slot in slots if (slot.name != "s") == bool(grouping)]
        if not selected:
            rank = "rank_personal" if grouping else "rank_shared"
            raise UserError(f"problem: {rank} = 0 leaves nothing to send for target {target or 's'!r}")
        slot = selected[0]
        return problem_of(link, slot, slot.weights, channels.h_est, channels.csi_variance)

    def replace(self, **radio: Any) -> "RadioNetwork":
        """Return the network with other keys of the radio's settings; its seed and its devices stay.

        The value None removes a key, so that its default applies. Raises UserError as `single_cell` does.

        >>> import airpfed as ap
        >>> ap.single_cell(devices=[4], snr_db=10).replace(antennas=2).channels(0, 5).shape
        torch.Size([5, 2, 4])
        """
        settings = change_radio(self.settings, "replace", radio, flat=True)
        refuse_ineffective("replace", [settings], training=False)
        return replace(self, settings=settings)

    def __repr__(self) -> str:
        """Describe the network in one line."""
        radio, stations = self.settings.radio, len(self.stations)
        parts = (
            f"{len(self.devices)} devices of {_count(len(self.tasks), 'task')}",
            f"{_count(stations, 'station')} of {_count(radio.antennas, 'antenna')}",
            radio.channel.label,
            f"noise {self.link.noise:.3g} W" if radio.snr_db is None else f"median SNR {radio.snr_db:g} dB",
        )
        return f"RadioNetwork({', '.join(parts)})"

    def _draw(self, t: int, blocks: int) -> tuple[Tensor, Tensor]:
        self._check_blocks(blocks)
        return self.link.channels(t, blocks)

    def _check_blocks(self, blocks: int) -> None:
        check_count("blocks", blocks)
        check_channel_memory(self.settings.radio, len(self.devices), len(self.tasks), blocks)

    def _task_number(self, target: str | SupportsIndex | None) -> int:
        if target in self.tasks:
            return self.tasks.index(str(target))
        if isinstance(target, SupportsIndex) and 0 <= index(target) < len(self.tasks):
            return index(target)
        names = ("s", "p", "s+p", *self.tasks)
        raise UserError(
            f"problem: target {target!r} should be one of {', '.join(names)}, or a task's number from 0 to "
            f"{len(self.tasks) - 1}{hint(str(target), names)}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def single_cell(
    devices: Counts = 4,
    *,
    antennas: int = 16,
    snr_db: Number | None = None,
    power_dbm: Numbers = 20.0,
    samples: Numbers = 40,
    channel: Any = "rayleigh",
    csi_error: Number | None = 0.0,
    coherence_symbols: Number | str | None = None,
    rank_shared: int = 4,
    rank_personal: int = 4,
    seed: int = 0,
    drop: int = 0,
    **radio: Any,
) -> RadioNetwork:
    """Devices of several tasks in a disc around one station that serves them all.

    devices: number of devices of one task, of each task, or {task: number}. antennas: M. snr_db: receive SNR per
    antenna of the median device, dB, which sets the noise; None for thermal noise, or for `noise_dbm`. power_dbm: power
    limit of a device, dBm: one for all, one a task, or a list a task with one a device. samples: D_k, samples of a
    device, in the same three forms; the weight of a device in a sum is its share of them. channel: a name of CHANNELS,
    such as "rayleigh" or "rician(k_db=5)", a pair ("rician", {"k_db": 5}), or a function (site, t, blocks, *, options)
    -> channels (B, M, K). csi_error: share of a channel's variance that estimates lack; None for the errors of pilots.
    coherence_symbols: channel uses of a block; "derived" from speed and delay spread, as in a settings file that says
    nothing; None for 20,000, flat over the band, or the blocks of a channel file. Blocks fade independently, but for
    those of several groups of subcarriers, of which the first ones of a round are neighbours in the band. rank_shared,
    rank_personal: ranks of the adapters, which weight s- and p-sums in Pi. seed, drop: each pair is another drop.
    radio: any other key of the section [radio] of a settings file, such as cell_radius_m, noise_dbm or packing.

    Raises UserError for unknown keys, with the nearest one, for wrong values, and for keys without effect.

    >>> import airpfed as ap
    >>> ap.single_cell(devices={"sms": 4, "news": 2}, antennas=8, channel=("rician", {"k_db": 5.0}), noise_dbm="off")
    RadioNetwork(6 devices of 2 tasks, 1 station of 8 antennas, rician(k_db=5.0), noise 0 W)
    """
    radio |= {"antennas": antennas, "snr_db": snr_db, "channel": channel, "csi_error": csi_error, "drop": drop}
    radio |= {"coherence_symbols": coherence_symbols}
    _refuse_keys("single_cell", radio, {"topology": "multi_cell", "layout": "cell_free", "access_points": "cell_free"})
    return _network("single_cell", devices, power_dbm, samples, (rank_shared, rank_personal), seed, radio)


def multi_cell(
    devices: Counts = (4, 4),
    *,
    topology: Literal["joint", "two_hop"] = "joint",
    edge_distance_m: Number = 400.0,
    antennas: int = 16,
    snr_db: Number | None = None,
    power_dbm: Numbers = 20.0,
    samples: Numbers = 40,
    channel: Any = "rayleigh",
    csi_error: Number | None = 0.0,
    coherence_symbols: Number | str | None = None,
    rank_shared: int = 4,
    rank_personal: int = 4,
    seed: int = 0,
    drop: int = 0,
    **radio: Any,
) -> RadioNetwork:
    """A cell for every task, with its edge station on a circle and its devices in a disc around that.

    topology: joint: the antennas of all stations receive the s-sum together; two_hop: each edge receives the sum of its
    devices and forwards it. edge_distance_m: radius of the circle of stations. antennas: of each station. The other
    arguments, and what is raised, are those of `single_cell`.

    >>> import airpfed as ap
    >>> network = ap.multi_cell(devices=[4, 4, 4], antennas=8, snr_db=10)
    >>> network.problem(blocks=5).h.shape, network.problem(blocks=5, target=2).h.shape
    (torch.Size([5, 24, 12]), torch.Size([5, 8, 4]))
    """
    radio |= {"antennas": antennas, "snr_db": snr_db, "channel": channel, "csi_error": csi_error, "drop": drop}
    radio |= {"coherence_symbols": coherence_symbols}
    radio |= {"topology": topology, "edge_distance_m": edge_distance_m}
    _refuse_keys("multi_cell", radio, {"layout": "cell_free", "access_points": "cell_free"})
    if topology not in ("joint", "two_hop"):
        raise UserError(f'multi_cell: topology = {topology!r}: should be "joint" or "two_hop"')
    return _network("multi_cell", devices, power_dbm, samples, (rank_shared, rank_personal), seed, radio)


def cell_free(
    devices: Counts = 4,
    *,
    access_points: int = 64,
    square_m: Number = 1000.0,
    antennas: int = 1,
    snr_db: Number | None = None,
    power_dbm: Numbers = 20.0,
    samples: Numbers = 40,
    channel: Any = "rayleigh",
    csi_error: Number | None = 0.0,
    coherence_symbols: Number | str | None = None,
    rank_shared: int = 4,
    rank_personal: int = 4,
    seed: int = 0,
    drop: int = 0,
    **radio: Any,
) -> RadioNetwork:
    """Access points and devices all over a square with wrap-around; all access points receive together.

    access_points: their number. square_m: side of the square, metres. antennas: of each access point. The other
    arguments, and what is raised, are those of `single_cell`.

    >>> import airpfed as ap
    >>> ap.cell_free(devices=[4, 4], access_points=16, snr_db=10).problem(blocks=5).h.shape
    torch.Size([5, 16, 8])
    """
    radio |= {"antennas": antennas, "snr_db": snr_db, "channel": channel, "csi_error": csi_error, "drop": drop}
    radio |= {"coherence_symbols": coherence_symbols}
    radio |= {"layout": "cell_free", "access_points": access_points, "square_m": square_m}
    _refuse_keys("cell_free", radio, {"topology": "multi_cell"})
    return _network("cell_free", devices, power_dbm, samples, (rank_shared, rank_personal), seed, radio)


def change_radio(settings: Settings, source: str, changes: Mapping[str, Any], flat: bool) -> Settings:
    """Return settings with other keys of [radio]; None removes a key.

    source: what messages begin with. flat: whether blocks are by default those of a network, not of a settings file.
    """
    _refuse_keys(source, changes, {})
    tree = {key: getattr(settings, key) for key in settings.model_fields_set}
    radio = {key: getattr(settings.radio, key) for key in settings.radio.model_fields_set}
    if flat and radio.get("coherence_symbols") == FLAT_USES and "coherence_symbols" not in changes:
        del radio["coherence_symbols"]  # the default, which may be another one after the changes
    changed = tree | {"radio": _without_none({**radio, **changes})}
    return _with_flat_blocks(changed, source) if flat else parse_settings(changed, source)


def _with_flat_blocks(tree: Mapping[str, Any], source: str) -> Settings:
    """Parse settings, with blocks of FLAT_USES where nothing is said of them and no file has its own."""
    settings = parse_settings(tree, source)
    radio = settings.radio
    if radio.has_recorded_channel or {"coherence_symbols", "subcarrier_groups"} & radio.model_fields_set:
        return settings
    return parse_settings({**tree, "radio": {**tree["radio"], "coherence_symbols": FLAT_USES}}, source)


def plain_value(value: Any) -> Any:
    """Return a number of NumPy or a tensor of one entry as a number of Python; other values stay."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _network(
    source: str,
    devices: Counts,
    power_dbm: Numbers,
    samples: Numbers,
    ranks: tuple[int, int],
    seed: int,
    radio: Mapping[str, Any],
) -> RadioNetwork:
    """Make a network from the values of a settings file. source: what messages begin with."""
    devices = plain_value(devices)
    counts = (
        {str(name): plain_value(count) for name, count in devices.items()}
        if isinstance(devices, Mapping)
        else {f"task{n}": plain_value(count) for n, count in enumerate(_items(devices))}
    )
    for name, count in counts.items():
        if count == 0:
            raise UserError(f"{source}: devices of {name} = 0: should be at least 1")
    tasks: list[dict[str, Any]] = [{"name": name, "devices": count} for name, count in counts.items()]
    radio = dict(radio)
    powers, sizes = _per_task(source, "power_dbm", power_dbm, counts), _per_task(source, "samples", samples, counts)
    if isinstance(plain_value(power_dbm), (int, float)):
        radio["power_dbm"] = plain_value(power_dbm)
    else:
        tasks = [task | {"power_dbm": power} for task, power in zip(tasks, powers, strict=True)]
    by_device = any(isinstance(size, list) for size in sizes)
    if not by_device:
        tasks = [task | {"samples_per_device": size} for task, size in zip(tasks, sizes, strict=True)]
    adapters = {"rank_shared": plain_value(ranks[0]), "rank_personal": plain_value(ranks[1])}
    tree = {"tasks": tasks, "adapters": adapters, "run": {"seed": plain_value(seed)}, "radio": _without_none(radio)}
    settings = _with_flat_blocks(tree, source)
    refuse_ineffective(source, [settings], training=False)
    each = tuple(float(n) for n in _each_device(source, sizes, counts)) if by_device else None
    network = RadioNetwork(settings, each)
    _ = network.link  # a model of channels that cannot be built says so here
    return network


def _items(value: Any) -> list[Any]:
    return [plain_value(item) for item in value] if isinstance(value, Iterable) else [value]


def _per_task(source: str, key: str, value: Any, counts: Mapping[str, int]) -> list[Any]:
    """Return a value for every task; a list of values, one a device, stays a list."""
    value = plain_value(value)
    if not isinstance(value, Iterable):
        return [value] * len(counts)
    values = [_items(item) if isinstance(item, Iterable) else plain_value(item) for item in value]
    if len(values) != len(counts):
        raise UserError(f"{source}: {key} has {len(values)} values: should be one, or {len(counts)}, one a task")
    return values


def _each_device(source: str, sizes: Sequence[Any], counts: Mapping[str, int]) -> Iterable[int]:
    """Return D_k of every device, in the order of the tasks."""
    for size, (name, count) in zip(sizes, counts.items(), strict=True):
        values = size if isinstance(size, list) else [size] * count
        if len(values) != count:
            raise UserError(
                f"{source}: samples of {name} has {len(values)} values: should be one, or {count}, one a device"
            )
        for value in values:
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise UserError(f"{source}: samples of {name} = {value!r}: should be a number greater than 0")
        yield from values


def _without_none(radio: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain_value(value) for key, value in radio.items() if value is not None}


def _refuse_keys(source: str, radio: Mapping[str, Any], instead: Mapping[str, str]) -> None:
    """Raise UserError for a key that belongs to another function. instead: key -> that function."""
    for key, function in {**instead, "design": "link_study"}.items():
        if key in radio:
            raise UserError(f"{source}: no option {key!r}; see ap.{function}")
    if "scheme" in radio:
        raise UserError(f"{source}: no option 'scheme'; a network is for designs, which superpose in the channel")
