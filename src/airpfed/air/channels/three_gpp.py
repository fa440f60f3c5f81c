"""3GPP TR 38.901 channels through Sionna: UMi, UMa and RMa with their own path loss, CDL and TDL with ours.

Sionna is an optional extra, imported when a channel of these is built. It draws from generators of its own, which are
seeded before each use, so that channels stay functions of (seed, round, block).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.network import Network
from airpfed.core.errors import UserError
from airpfed.core.rng import stream

SCENARIOS = ("umi", "uma", "rma")
"""System-level models: path loss, shadowing, line of sight and geometry are theirs."""

PROFILES = tuple(f"{kind}_{letter}" for kind in ("cdl", "tdl") for letter in "abcde")
"""Link-level models, of unit mean power: path loss is ours."""

STATION_M = {"umi": 10.0, "uma": 25.0, "rma": 35.0}
"""Heights of stations in the evaluations of TR 38.901, metres."""
DEVICE_M = 1.5


@dataclass(frozen=True)
class SionnaChannel:
    """What a 3GPP channel is asked for.

    model: a Sionna channel, called with (times, samples a second), or with a batch of K S links before them. centres:
    of the subcarrier groups, hertz from the carrier. coherence_s: seconds of a coherence time.
    """

    model: Any
    links: int | None
    centres: Float[Tensor, " G"]
    coherence_s: float
    names: tuple[str | int, ...]


def phy() -> Any:
    """Sionna's physical layer; UserError naming the extra where it is not installed."""
    try:
        import sionna.phy
        import sionna.phy.channel.tr38901
    except ImportError:
        raise UserError(
            'radio.channel: the 3GPP models need Sionna, which is not installed: pip install "airpfed[sionna]"'
        ) from None
    sionna.phy.config.device = "cpu"
    return sionna.phy


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Sionna's generators at the start of a named stream; torch's own generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        phy().config.seed = stream(seed, *names).initial_seed()
        yield


def array(elements: int, carrier_hz: float) -> Any:
    """A row of vertically polarised omnidirectional elements, half a wavelength apart."""
    return phy().channel.tr38901.PanelArray(
        num_rows_per_panel=1, num_cols_per_panel=elements, polarization="single", polarization_type="V",
        antenna_pattern="omni", carrier_frequency=carrier_hz, precision="double",
    )  # fmt: skip


def scenario(
    name: str, network: Network, seed: int, carrier_hz: float, speed_mps: float, sounding: SionnaChannel
) -> Network:  # fmt: skip
    """A drop of UMi, UMa or RMa: `network` gives the places, the model everything else. All devices are outdoors.

    Random: states of line of sight and large-scale parameters, from stream (seed, names, "large scale"), the same in
    all rounds; rays from (seed, names, "fading", t).
    """
    models = phy().channel.tr38901
    kinds = {"umi": models.UMi, "uma": models.UMa, "rma": models.RMa}
    extra = {} if name == "rma" else {"o2i_model": "low"}
    model = kinds[name](
        carrier_frequency=carrier_hz, ut_array=array(1, carrier_hz), bs_array=array(network.antennas, carrier_hz),
        direction="uplink", precision="double", **extra,
    )  # fmt: skip
    count = len(network.devices)
    outdoors = torch.zeros(1, count, dtype=torch.bool)
    rest = torch.zeros(1, count, 3, dtype=torch.float64)
    velocity = rest.clone()
    velocity[..., 0] = speed_mps
    with seeded(seed, *network.names, "large scale"):
        model.set_topology(
            lifted(network.devices, DEVICE_M), lifted(network.stations, STATION_M[name]), rest,
            torch.zeros(1, len(network.stations), 3, dtype=torch.float64), velocity, outdoors,
            **({"in_car": outdoors} if name == "rma" else {}),
        )  # fmt: skip
    large = model._lsp  # the only way to the drop's mean gains
    gain = 10 ** (-model._scenario.basic_pathloss[0] / 10) * large.sf[0]
    ask = replace(sounding, model=model, links=None)
    return replace(network, gain=gain, scattered=gain, fade=partial(heard_by_stations, ask))


def profile(
    name: str, network: Network, carrier_hz: float, delay_spread_s: float, speed_mps: float, sounding: SionnaChannel
) -> Network:
    """A drop of CDL or TDL channels of the given delay spread: each link its own realisation, of `network`'s mean gain.

    CDL: all devices share the model's cluster angles. TDL: antennas are independent.
    """
    models, antennas = phy().channel.tr38901, network.antennas
    kind, letter = name.split("_")
    motion = {"min_speed": speed_mps, "max_speed": speed_mps, "precision": "double"}
    if kind == "cdl":
        arrays = array(1, carrier_hz), array(antennas, carrier_hz)
        model = models.CDL(letter.upper(), delay_spread_s, carrier_hz, *arrays, "uplink", **motion)
    else:
        model = models.TDL(letter.upper(), delay_spread_s, carrier_hz, num_rx_ant=antennas, **motion)
    ask = replace(sounding, model=model, links=network.gain.numel())
    return replace(network, fade=partial(link_by_link, ask, network.gain))


def lifted(places: Float[Tensor, "P 2"], height_m: float) -> Float[Tensor, "1 P 3"]:
    """Places at a height, as Sionna takes them."""
    return torch.cat([places, torch.full((len(places), 1), height_m, dtype=places.dtype)], 1)[None]


def sounded(ask: SionnaChannel, seed: int, t: int, blocks: range) -> Complex[Tensor, "links rx A tx B"]:
    """A Sionna channel at the centres of the blocks' subcarrier groups and times."""
    times = -(-blocks.stop // len(ask.centres))
    with seeded(seed, *ask.names, "fading", t):
        a, tau = ask.model(*([] if ask.links is None else [ask.links]), times, 1 / ask.coherence_s)
    h = phy().channel.cir_to_ofdm_channel(ask.centres, a, tau, normalize=False)[:, :, :, :, 0]
    found: Tensor = h.flatten(-2)[..., blocks.start : blocks.stop]
    return found.to(torch.complex128)


def heard_by_stations(ask: SionnaChannel, seed: int, t: int, blocks: range) -> tuple[Tensor, Tensor]:
    """Blocks of a system-level model: stations' antennas stacked. Nothing of them is known beforehand."""
    h = sounded(ask, seed, t, blocks)[0].flatten(0, 1).movedim(-1, 0)
    return h, torch.zeros((), dtype=h.dtype).expand(h.shape)


def link_by_link(
    ask: SionnaChannel, gain: Float[Tensor, "S K"], seed: int, t: int, blocks: range
) -> tuple[Tensor, Tensor]:
    """Blocks of a link-level model: one realisation a link, scaled to its mean gain, stations' antennas stacked."""
    h = sounded(ask, seed, t, blocks)[:, 0, :, 0]
    links = h.reshape(*gain.shape, *h.shape[1:]) * gain.sqrt()[:, :, None, None]
    stacked = links.movedim(1, 2).flatten(0, 1).movedim(-1, 0)
    return stacked, torch.zeros((), dtype=h.dtype).expand(stacked.shape)
