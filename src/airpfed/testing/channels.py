"""The contract of a channel model, checked on two small sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Complex
from torch import Tensor

from airpfed.air.channels import Channel, channels_of_row
from airpfed.air.network import ChannelSite, Network
from airpfed.testing.report import (
    CheckSkipped,
    Report,
    Subject,
    clone_tensors,
    describe_exception,
    largest_z,
    require,
    run_checks,
    subject_of,
    tensors_equal,
    with_global_seeds,
)

STANDARD_ERRORS = 5.0
"""Largest deviation of a mean power from the gain, in standard errors."""
SEEDS, BLOCKS = 48, 12
"""The draws of a mean power: seeds, which are independent, and coherence blocks, which need not be."""
RANGES = (range(1), range(6), range(2, 4), range(5, 9))
"""Coherence blocks that are drawn by themselves; all lie in a range from 0 to 12."""


def check_channel(channel: Channel | Callable[..., Tensor] | str, **options: Any) -> Report:
    """Check a channel model: everything that the uplink and the link study rely on.

    channel: a `Channel`, a function `(site, t, blocks, *, options) -> h`, or the name of a row of `CHANNELS`. options:
    its options. One site has one station, the other has two stations and two subcarrier groups; devices are 60 to 200
    m away. Raises UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_channel("rician", k_db=6.0).ok
    True
    """
    subject = subject_of("channels", channel, options)
    trial = ChannelTrial.build_networks(subject)
    return run_checks(
        subject,
        [
            ("builds a network", trial.builds),
            ("shape and type", trial.shape),
            ("finite", trial.finite),
            ("site is not changed", trial.site_unchanged),
            ("deterministic", trial.deterministic),
            ("a block by itself", trial.independent_blocks),
            ("seeds differ", trial.seeds_differ),
            ("mean power", trial.mean_power),
            ("power to be estimated", trial.scattered_power),
            ("no channel without a gain", trial.zero_gain),
        ],
    )


def example_sites() -> Mapping[str, ChannelSite]:
    """Name -> site. The gains of two stations are unlike, so that antennas in the wrong order have the wrong power."""
    positions = torch.tensor([[60.0, 10.0], [0.0, 90.0], [-150.0, 40.0], [30.0, -120.0]], dtype=torch.float64)
    common = {"seed": 5, "carrier_hz": 3.5e9, "bandwidth_hz": 20e6, "subcarriers": 1024, "names": ()}
    gain = torch.tensor([[1e-10, 4e-11, 2e-12, 9e-12], [3e-12, 2e-11, 5e-11, 1e-12]], dtype=torch.float64)
    stations = torch.tensor([[0.0, 0.0], [-200.0, 100.0]], dtype=torch.float64)
    return {
        "one station": ChannelSite(
            stations=stations[:1],
            devices=positions,
            gain=gain[:1],
            antennas=4,
            subcarrier_groups=1,
            coherence_s=1e-3,
            **common,  # type: ignore[arg-type]
        ),
        "two stations": ChannelSite(
            stations=stations,
            devices=positions,
            gain=gain,
            antennas=2,
            subcarrier_groups=2,
            coherence_s=2e-3,
            **common,  # type: ignore[arg-type]
        ),
    }


@dataclass(frozen=True)
class ChannelTrial:
    """A channel model and its networks on all sites. failures: name -> why a site has no network."""

    row: Channel
    build: Callable[[ChannelSite], Network]
    networks: Mapping[str, Network]
    failures: Mapping[str, str]
    mutated: tuple[str, ...]

    @classmethod
    def build_networks(cls, subject: Subject) -> "ChannelTrial":
        """Build and draw on every site once."""

        def build(site: ChannelSite) -> Network:
            if subject.row.prepare is not None:
                network: Network = subject.function(site)
                return network
            return site.network(partial(channels_of_row, subject.label, subject.function, site))

        networks, failures, mutated = dict[str, Network](), dict[str, str](), list[str]()
        for name, site in example_sites().items():
            copy = clone_tensors(site)
            try:
                network = build(copy)
                if not isinstance(network, Network):
                    failures[name] = f"returns a {type(network).__name__}; should be a Network, as of site.network(...)"
                    continue
                network.channel_model(1, 1, range(2))
                networks[name] = network
            except Exception as error:  # of the user's model, which may raise anything
                failures[name] = describe_exception(error)
            if not tensors_equal(site, copy):
                mutated.append(name)
        return cls(subject.row, build, networks, failures, tuple(mutated))

    def builds(self) -> str:
        """Every site gets a network, and its channels can be drawn."""
        for name, text in self.failures.items():
            require(False, f"{name}: {text}")
        return f"{len(self.networks)} sites"

    def shape(self) -> str:
        """Channels and their line of sight are (B, M, K), complex128, for every range of blocks."""
        for name, network in self._networks():
            antennas, devices = len(network.stations) * network.antennas, len(network.devices)
            for blocks in RANGES:
                for part, value in zip(("channels", "line of sight"), network.channel_model(1, 2, blocks), strict=True):
                    expected = (len(blocks), antennas, devices)
                    require(
                        tuple(value.shape) == expected and value.dtype == torch.complex128,
                        f"{name}: {part} of {blocks} are {tuple(value.shape)} {value.dtype}; should be {expected} "
                        "torch.complex128",
                    )
        return "(B, M, K) complex128"

    def finite(self) -> str:
        """No entry is infinite or NaN."""
        for name, network in self._networks():
            for t in (1, 2, 1000):
                h, _ = network.channel_model(1, t, range(8))
                bad = int((~h.isfinite()).sum())
                require(bad == 0, f"{name}: {bad} of {h.numel()} channels of round {t} are infinite or NaN")
        return ""

    def site_unchanged(self) -> str:
        """The tensors of the site are as before."""
        require(not self.mutated, f"{(*self.mutated, '')[0]}: the model changes the tensors of its site")
        return ""

    def deterministic(self) -> str:
        """Channels are a function of seed, round and block, whatever the global generators hold."""
        for name, network in self._networks():
            draws = with_global_seeds(partial(channels_of_blocks, network, range(4)))
            again = channels_of_blocks(self.build(example_sites()[name]), range(4))
            difference = max(channel_distance(draws[0], other) for other in (draws[1], again))
            require(
                tensors_equal(draws[0], draws[1]) and tensors_equal(draws[0], again),
                f"{name}: two draws of one seed, round and blocks differ by {difference:.3g} of their size; draw from "
                "site.rng(..., t, block)",
            )
        return "equal bits"

    def independent_blocks(self) -> str:
        """A block's channel does not depend on the other blocks that are drawn with it, nor on earlier draws."""
        for name, network in self._networks():
            together = channels_of_blocks(network, range(12))
            for blocks in RANGES:
                alone = channels_of_blocks(network, blocks)
                difference = channel_distance(alone, together[blocks.start : blocks.stop])
                require(
                    difference <= 1e-9,
                    f"{name}: the channels of {blocks} differ by {difference:.3g} of their size from those of the "
                    "same blocks in range(0, 12); draw from site.rng(..., t, block)",
                )
        return ""

    def seeds_differ(self) -> str:
        """Two seeds give different channels."""
        for name, network in self._networks():
            first, second = (network.channel_model(seed, 1, range(2))[0] for seed in (1, 2))
            require(channel_distance(first, second) > 1e-6, f"{name}: seeds 1 and 2 give the same channels")
        return ""

    def mean_power(self) -> str:
        """E|h|^2 is the mean gain of the network, for each station and device."""
        return self._compare_power("the mean power of channels", 0, lambda network: network.gain)

    def scattered_power(self) -> str:
        """The part of the channel that must be estimated has the mean power `scattered`."""
        return self._compare_power("the mean power besides the line of sight", 1, lambda network: network.scattered)

    @cached_property
    def powers(self) -> Mapping[str, Tensor]:
        """Name of a site -> powers of the channels and of their part besides the line of sight, (seeds, 2, S, K)."""
        return {
            name: torch.stack([station_powers(network, seed) for seed in range(SEEDS)])
            for name, network in self._networks()
        }

    def _compare_power(self, quantity: str, part: int, expected: Callable[[Network], Tensor]) -> str:
        largest = 0.0
        for name, network in self._networks():
            ratios = self.powers[name][:, part] / expected(network)
            mean = ratios.mean(0)
            # The spread of all stations and devices together: where a device's power is low, so is its own spread.
            spread = ratios.var(0).mean().sqrt().clamp_min(1e-9)
            z = max(float(((mean - 1) / spread).abs().max()) * SEEDS**0.5, largest_z(ratios.mean((1, 2)) - 1))
            station, device = divmod(int((mean - 1).abs().argmax()), mean.shape[1])
            largest = max(largest, z)
            require(
                z <= STANDARD_ERRORS,
                f"{name}: {quantity} is {float(ratios.mean()):.4g} times the gain, {float(mean[station, device]):.4g} "
                f"times for device {device} at station {station}: {z:.1f} standard errors off",
            )
        return f"at most {largest:.1f} standard errors, {SEEDS} seeds"

    def zero_gain(self) -> str:
        """A device whose mean gain is 0 has the channel 0; for models without a path loss of their own."""
        if self.row.has_path_loss:
            raise CheckSkipped("the model has its own path loss")
        for name, _ in self._networks():
            site = clone_tensors(example_sites()[name])
            site.gain[:, 1] = 0
            h, _ = self.build(site).channel_model(1, 1, range(2))
            require(bool(h.isfinite().all()), f"{name}: with a gain of 0, channels are infinite or NaN")
            require(not bool(h[..., 1].any()), f"{name}: a device whose mean gain is 0 has a channel")
        return ""

    def _networks(self) -> list[tuple[str, Network]]:
        """The networks; skip the check if there is none."""
        if not self.networks:
            raise CheckSkipped("no site has a network")
        return list(self.networks.items())


def channels_of_blocks(network: Network, blocks: range) -> Complex[Tensor, "B M K"]:
    """The channels of some blocks, of one seed and round."""
    h, _ = network.channel_model(4, 3, blocks)
    return h


def station_powers(network: Network, seed: int) -> Tensor:
    """The powers of the channels and of their part besides the line of sight, (2, S, K).

    Means over the blocks of one seed and round, and over a station's antennas.
    """
    h, los = network.channel_model(seed, 1, range(BLOCKS))
    power = torch.stack([h, h - los]).abs().square().mean(1)
    shape = (2, len(network.stations), network.antennas, power.shape[-1])
    return power.reshape(shape).mean(2)


def channel_distance(first: Complex[Tensor, "B M K"], second: Complex[Tensor, "B M K"]) -> float:
    """The norm of the difference over that of the second, device by device; the largest."""
    if first.shape != second.shape:
        return float("inf")
    norms = [value.flatten(0, 1).norm(dim=0) for value in (first - second, second)]
    return float((norms[0] / norms[1].clamp_min(1e-300)).max())
