"""3GPP TR 38.901 channels through Sionna: UMi, UMa and RMa with their path loss, CDL and TDL with ours.

Sionna is an optional extra, imported when such a channel is built. It has random generators of its own; they are seeded
before each use, so that channels stay functions of seed, round and block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Complex, Float
from pydantic import Field
from torch import Tensor

from airpfed.air.channels.fading import frequencies
from airpfed.air.network import ChannelSite, Network
from airpfed.core.errors import UserError
from airpfed.core.rng import stream

SCENARIOS = ("umi", "uma", "rma")
"""System-level models, with path loss, shadowing, line of sight and geometry of the standard."""

PROFILES = tuple(f"{kind}_{letter}" for kind in ("cdl", "tdl") for letter in "abcde")
"""Link-level models of unit mean power, scaled to our path loss."""

STATION_M = {"umi": 10.0, "uma": 25.0, "rma": 35.0}
"""Heights of stations in the evaluations of TR 38.901, metres."""
DEVICE_M = 1.5
"""Height of devices, metres."""


@dataclass(frozen=True)
class Sampling:
    """The frequencies and times at which a channel is sampled.

    centres: centre frequencies of the subcarrier groups, hertz from the carrier. coherence_s: seconds of a coherence
    time. names: prefix of the names of the streams.
    """

    centres: Float[Tensor, " G"]
    coherence_s: float
    names: tuple[str | int, ...]


def sampling_of(site: ChannelSite) -> Sampling:
    """The sampling of a site's coherence blocks."""
    centres = frequencies(site.subcarrier_groups, site.subcarriers) * site.bandwidth_hz
    return Sampling(centres, site.coherence_s, site.names)


WALKING_MPS = 3 / 3.6
"""3 km/h, the speed of `radio.speed_kmh` by default."""
Speed = Annotated[float, Field(ge=0, le=200, description="speed of the devices, m/s")]


def phy() -> Any:
    """Import Sionna's physical layer; raises UserError if the extra is not installed."""
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
def seed_sionna(seed: int, *names: str | int) -> Iterator[None]:
    """Seed Sionna's generators from a named stream, and restore the state of torch's generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        phy().config.seed = stream(seed, *names).initial_seed()
        yield


def antenna_array(elements: int, carrier_hz: float) -> Any:
    """A uniform linear array of vertically polarised omnidirectional elements, half a wavelength apart."""
    return phy().channel.tr38901.PanelArray(
        num_rows_per_panel=1, num_cols_per_panel=elements, polarization="single", polarization_type="V",
        antenna_pattern="omni", carrier_frequency=carrier_hz, precision="double",
    )  # fmt: skip


def system_level_network(name: str, site: ChannelSite, *, speed_mps: Speed = WALKING_MPS) -> Network:
    """UMi, UMa or RMa of 3GPP TR 38.901 with the positions of `site` and the gains of the model, devices outdoors.

    Random: line-of-sight states and large-scale parameters from the stream (seed, names, "large scale"), the same in
    all rounds; rays from (seed, names, "fading", t).
    """
    models = phy().channel.tr38901
    kinds = {"umi": models.UMi, "uma": models.UMa, "rma": models.RMa}
    extra = {} if name == "rma" else {"o2i_model": "low"}
    model = kinds[name](
        carrier_frequency=site.carrier_hz, ut_array=antenna_array(1, site.carrier_hz),
        bs_array=antenna_array(site.antennas, site.carrier_hz),
        direction="uplink", precision="double", **extra,
    )  # fmt: skip
    count = len(site.devices)
    outdoors = torch.zeros(1, count, dtype=torch.bool)
    orientation = torch.zeros(1, count, 3, dtype=torch.float64)
    velocity = orientation.clone()
    velocity[..., 0] = speed_mps
    with seed_sionna(site.seed, *site.names, "large scale"):
        model.set_topology(
            at_height(site.devices, DEVICE_M), at_height(site.stations, STATION_M[name]), orientation,
            torch.zeros(1, len(site.stations), 3, dtype=torch.float64), velocity, outdoors,
            **({"in_car": outdoors} if name == "rma" else {}),
        )  # fmt: skip
    large = model._lsp  # the only access to the mean gains of the drop
    gain = 10 ** (-model._scenario.basic_pathloss[0] / 10) * large.sf[0]
    return site.network(partial(system_level_channels, model, sampling_of(site)), gain)


def link_level_network(
    name: str,
    site: ChannelSite,
    *,
    delay_spread_s: Annotated[float, Field(gt=0, le=1e-4, description="rms delay spread, s")],
    speed_mps: Speed = WALKING_MPS,
) -> Network:
    """CDL or TDL of 3GPP TR 38.901, one realisation a link, scaled to the site's mean gains.

    CDL: all devices share the cluster angles of the model. TDL: antennas are independent.
    """
    models = phy().channel.tr38901
    kind, letter = name.split("_")
    motion = {"min_speed": speed_mps, "max_speed": speed_mps, "precision": "double"}
    if kind == "cdl":
        arrays = antenna_array(1, site.carrier_hz), antenna_array(site.antennas, site.carrier_hz)
        model = models.CDL(letter.upper(), delay_spread_s, site.carrier_hz, *arrays, "uplink", **motion)
    else:
        model = models.TDL(letter.upper(), delay_spread_s, site.carrier_hz, num_rx_ant=site.antennas, **motion)
    return site.network(partial(link_level_channels, model, sampling_of(site), site.gain))


def at_height(positions: Float[Tensor, "P 2"], height_m: float) -> Float[Tensor, "1 P 3"]:
    """Positions with a height, in the shape that Sionna expects."""
    return torch.cat([positions, torch.full((len(positions), 1), height_m, dtype=positions.dtype)], 1)[None]


def sample_channels(
    model: Any, sampling: Sampling, batch: list[int], seed: int, t: int, blocks: range
) -> Complex[Tensor, "links rx A tx B"]:
    """Sample a Sionna model at the blocks' subcarrier groups and times.

    batch: arguments of the model before the times and the sampling rate; for a link-level model, the number of links.
    """
    times = -(-blocks.stop // len(sampling.centres))
    with seed_sionna(seed, *sampling.names, "fading", t):
        a, tau = model(*batch, times, 1 / sampling.coherence_s)
    h = phy().channel.cir_to_ofdm_channel(sampling.centres, a, tau, normalize=False)[:, :, :, :, 0]
    samples: Tensor = h.flatten(-2)[..., blocks.start : blocks.stop]
    return samples.to(torch.complex128)


def system_level_channels(model: Any, sampling: Sampling, seed: int, t: int, blocks: range) -> tuple[Tensor, Tensor]:
    """A `ChannelModel` of a system-level model: stations' antennas stacked, and no part known without estimation."""
    h = sample_channels(model, sampling, [], seed, t, blocks)[0].flatten(0, 1).movedim(-1, 0)
    return h, torch.zeros((), dtype=h.dtype).expand(h.shape)


def link_level_channels(
    model: Any, sampling: Sampling, gain: Float[Tensor, "S K"], seed: int, t: int, blocks: range
) -> tuple[Tensor, Tensor]:
    """A `ChannelModel` of a link-level model: one realisation a link, scaled to its mean gain, antennas stacked."""
    h = sample_channels(model, sampling, [gain.numel()], seed, t, blocks)[:, 0, :, 0]
    links = h.reshape(*gain.shape, *h.shape[1:]) * gain.sqrt()[:, :, None, None]
    stacked = links.movedim(1, 2).flatten(0, 1).movedim(-1, 0)
    return stacked, torch.zeros((), dtype=h.dtype).expand(stacked.shape)
