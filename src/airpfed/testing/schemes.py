"""The contract of a scheme of the uplink, checked in rounds of five devices of two tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from airpfed.air.designs import Unbiased, uniform_forcing
from airpfed.air.grouping import round_grouping
from airpfed.air.resources import use_seconds
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.air.schemes import Knowledge, Mixing, Scheme
from airpfed.air.slot_errors import ReceivedSums
from airpfed.air.uplink import Aggregate, initial_statistics, uplink
from airpfed.core.rng import stream
from airpfed.core.run_files import SlotError
from airpfed.testing.links import (
    GAIN,
    exact_means,
    fixed_channels,
    flat_network,
    nan_when_absent,
    random_updates,
    small_uplink,
    sums_difference,
    without_channels,
)
from airpfed.testing.report import (
    BrokenContractError,
    CheckSkipped,
    Report,
    Subject,
    check_declarations,
    clone_tensors,
    require,
    run_checks,
    subject_of,
    tensors_equal,
    with_global_seeds,
)

STANDARD_ERRORS = 5.0
"""Largest deviation of a mean from its claim, in standard errors."""
SEEDS = 64
"""Rounds over which means are taken."""
ROUNDING = 1e-5
"""Error of a sum, relative to the norm of the exact one, that counts as rounding: sums are float32."""


def check_scheme(scheme: Scheme | Callable[..., ReceivedSums] | str, **options: Any) -> Report:
    """Check a scheme of the uplink: everything that rounds, records and the theory rely on.

    scheme: a `Scheme`, a function `(link, slot, t, *, options) -> ReceivedSums`, or the name of a row of `SCHEMES`.
    options: its options. A scheme that superposes is checked with the design `uniform_forcing`. Raises UserError for a
    function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_scheme("digital", bits=8).ok
    True
    """
    subject = subject_of("schemes", scheme, options)
    trial = SchemeTrial(subject)
    return run_checks(
        subject,
        [
            (
                "declarations",
                lambda: check_declarations(subject.row, unbiased=Unbiased, mixing=Mixing, knowledge=Knowledge),
            ),
            ("sends every slot", trial.sends),
            ("finite", trial.finite),
            ("gradients are not changed", trial.gradients_unchanged),
            ("deterministic", trial.deterministic),
            ("absent devices", trial.absent_devices),
            ("unbiased as claimed", trial.unbiased),
            ("error as recorded", trial.measured_error),
            ("error as claimed", trial.claimed_error),
            ("knowledge as declared", trial.knowledge),
            ("ledger", trial.ledger),
            ("power limit", trial.power),
        ],
    )


class SchemeTrial:
    """A scheme with its options set, in place of that of the small uplink."""

    def __init__(self, subject: Subject) -> None:
        """Take the row and its function."""
        self.row: Scheme = subject.row
        cost = None if self.row.cost is None else partial(self.row.cost, **subject.options)
        unsent = None if self.row.unsent is None else partial(self.row.unsent, **subject.options)
        self.claim = self.row.claimed_mean(subject.options)
        self.fields: dict[str, Any] = (
            {"send": None, "cost": None, "design": uniform_forcing, "batched": True}
            if self.row.superposes
            else {
                "send": subject.function,
                "cost": cost,
                "unsent": unsent,
                "biased": self.claim != "given the channel",
            }
        )

    def link(self, **changes: Any) -> Uplink:
        """The small uplink with the scheme. changes: of the fields of `Uplink`."""
        return small_uplink(**{**self.fields, **changes})

    def links(self) -> Mapping[str, Uplink]:
        """Name -> an uplink for which a scheme has slots of another kind."""
        two_stations = flat_network(torch.full((2, 5), GAIN, dtype=torch.float64), 4)
        return {
            "single cell": self.link(),
            "p-slots of several tasks": self.link(access="concurrent"),
            "two hops": self.link(topology="two_hop", network=two_stations),
            "s and p in one slot": self.link(access="superposed"),
            "real packing, one normaliser": self.link(packing="real", normalizer="common"),
        }

    def rounds(self, links: Sequence[Uplink], draws: Sequence[int]) -> Iterator[tuple[Updates, Aggregate]]:
        """A round of each uplink with the gradients of a draw."""
        for link, draw in zip(links, draws, strict=True):
            updates = random_updates(link, draw)
            yield updates, uplink(link, 1, updates, initial_statistics(link))

    def sends(self) -> str:
        """Each slot gets sums (U, d), errors (U) and energies (K) of the right types, none of them negative."""
        if self.row.superposes:
            raise CheckSkipped("a design superposes the gradients")
        count = 0
        for name, link in self.links().items():
            updates = random_updates(link, 0)
            for slot in schedule(link, updates, round_grouping(link, 1, updates.present)):
                assert link.send is not None
                received, count = link.send(link, slot, 1), count + 1
                require(
                    isinstance(received, ReceivedSums),
                    f"{name}: returns a {type(received).__name__}; should be ReceivedSums",
                )
                receivers, where = len(slot.combining_matrix), f"{name}, slot {slot.name}"
                expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
                    "sums": (received.sums, (receivers, slot.vectors.shape[1])),
                    "joules": (received.joules, (len(slot.devices),)),
                    **{f.name: (getattr(received.errors, f.name), (receivers,)) for f in fields(received.errors)},
                }
                for part, (value, shape) in expected.items():
                    require(
                        tuple(value.shape) == shape,
                        f"{where}: {part} has shape {tuple(value.shape)}; should be {shape}",
                    )
                    require(
                        part == "sums" or not bool((value < 0).any()),
                        f"{where}: {part} has the value {float(value.min())}",
                    )
                require(
                    received.sums.dtype == slot.vectors.dtype,
                    f"{where}: sums are {received.sums.dtype}; should be {slot.vectors.dtype}, as the gradients",
                )
        return f"{count} slots"

    def finite(self) -> str:
        """Sums, errors and costs are finite, with dead channels, no noise, gradients of 0, and few devices."""
        network = small_uplink().network
        count = 0
        for name, link, rounds in (
            *((name, link, ("no device of a task", "gradients of 0")) for name, link in self.links().items()),
            ("single cell", self.link(), ("all devices", "one device", "no device", "constant gradients")),
            ("dead channels", self.link(network=without_channels(network, (1, 4))), ("all devices", "one device")),
            ("no channel at all", self.link(network=without_channels(network, range(5))), ("all devices",)),
            ("no noise", self.link(noise=0.0), ("all devices",)),
            ("one antenna", self.link(antennas=1), ("all devices",)),
        ):
            for description in rounds:
                updates = unusual_updates(link)[description]
                aggregate, count = uplink(link, 1, updates, initial_statistics(link)), count + 1
                for part in ("shared", "personal"):
                    bad = int((~getattr(aggregate, part).isfinite()).sum())
                    require(bad == 0, f"{name}, {description}: {bad} entries of the {part} sums are infinite or NaN")
                numbers = dict(aggregate.ledger.model_dump())
                for slot, error in errors_of(aggregate).items():
                    numbers |= {f"{slot}.{key}": value for key, value in error.model_dump().items()}
                for key, value in numbers.items():
                    require(value is None or isfinite(value), f"{name}, {description}: {key} is infinite or NaN")
        return f"{count} rounds"

    def gradients_unchanged(self) -> str:
        """The devices' gradients are as before."""
        link = self.link()
        updates = random_updates(link, 0)
        copy = clone_tensors(updates)
        uplink(link, 1, updates, initial_statistics(link))
        require(tensors_equal(updates, copy), "the gradients of the devices are changed in place")
        return ""

    def deterministic(self) -> str:
        """Sums are a function of seed, round and gradients, whatever the global generators hold."""
        link = self.link(csi_error=0.1)
        updates = random_updates(link, 0)
        first, second = with_global_seeds(lambda: sums_of(uplink(link, 1, updates, initial_statistics(link))))
        require(
            tensors_equal(first, second),
            f"two rounds of one seed differ by {sums_difference(first, second):.3g} of the sums; draw from "
            "airpfed.core.rng.stream(link.seed, name, t, slot.name)",
        )
        return "equal bits"

    def absent_devices(self) -> str:
        """The gradients of absent devices are not read."""
        link = self.link()
        present = torch.tensor([True, False, True, True, False])
        updates = replace(random_updates(link, 0), present=present)
        expected = sums_of(uplink(link, 1, updates, initial_statistics(link)))
        sums = sums_of(uplink(link, 1, nan_when_absent(updates, present), initial_statistics(link)))
        require(tensors_equal(sums, expected), "the sums depend on the gradients of absent devices")
        return "equal bits"

    def unbiased(self) -> str:
        """The mean of the sums is the exact sum: with the channels fixed, or over fading."""
        claim = self.claim
        if claim == "no":
            reason = "its design decides" if self.row.superposes else 'the row claims unbiased = "no"'
            raise CheckSkipped(reason)
        link = self.link()
        if claim == "given the channel":
            link = replace(link, network=fixed_channels(link.network))
        updates = random_updates(link, 0)
        exact = torch.cat([part.flatten() for part in exact_means(link, updates)])
        errors = []
        for seed in range(SEEDS):
            sums = uplink(replace(link, seed=seed), 1, updates, initial_statistics(link))
            errors.append(torch.cat([part.flatten().double() for part in sums_of(sums)]) - exact)
        # The exact sum shows shrinkage; signs show any other bias, entry by entry.
        signs = torch.randint(2, (12, len(exact)), generator=stream(3, "signs")).double() * 2 - 1
        directions = torch.cat([exact[None], signs])
        directions = directions / directions.norm(dim=1, keepdim=True)
        projections = torch.stack(errors) @ directions.T
        mean, error = projections.mean(0), projections.std(0) / SEEDS**0.5
        z = torch.where(mean.abs() > ROUNDING * exact.norm(), mean.abs() / error.clamp_min(1e-300), 0.0)
        share = 1 + float(mean[0] / exact.norm())
        require(
            float(z.max()) <= STANDARD_ERRORS,
            f"over {SEEDS} rounds the mean of the sums is {share:.4g} times the exact sum along it, and "
            f'{float(z.max()):.1f} standard errors away from it, but the row claims unbiased = "{claim}"',
        )
        return f"at most {float(z.max()):.1f} standard errors, {SEEDS} rounds"

    def measured_error(self) -> str:
        """`measured` of the record is the squared error of the sums over `scale`."""
        largest = 0.0
        for draw in range(3):
            link = self.link(seed=draw)
            ((updates, aggregate),) = self.rounds([link], [draw])
            exact_shared, exact_personal = exact_means(link, updates)
            for slot, record in errors_of(aggregate).items():
                task = None if slot == "s" else link.task_names.index(slot)
                sums, exact = (
                    (aggregate.shared, exact_shared)
                    if task is None
                    else (aggregate.personal[task], exact_personal[task])
                )
                error = float((sums.double() - exact).square().sum())
                recorded = record.measured * record.scale
                tolerance = 1e-3 * error + (ROUNDING * float(exact.norm())) ** 2
                require(
                    abs(recorded - error) <= tolerance,
                    f"slot {slot}: the record says that the squared error is {recorded:.4g}; the sums are off by "
                    f"{error:.4g}",
                )
                largest = max(largest, abs(recorded - error) / max(error, 1e-300) if error > tolerance else 0.0)
        return f"within {largest:.1e}"

    def claimed_error(self) -> str:
        """The mean of `measured` over rounds is that of `claimed`; a claim of 0 means exact sums."""
        links = [self.link(seed=seed) for seed in range(SEEDS)]
        rows = [errors_of(aggregate) for _, aggregate in self.rounds(links, range(SEEDS))]
        largest, claims = 0.0, 0
        for slot in rows[0]:
            pairs = [(row[slot].measured, row[slot].claimed) for row in rows]
            values = torch.tensor([(m, c) for m, c in pairs if c is not None], dtype=torch.float64)
            if not len(values):
                continue
            claims += 1
            measured, claimed = values.T
            require(
                not bool((measured[claimed == 0] > ROUNDING**2).any()),
                f"slot {slot}: the claimed error is 0, the measured one {float(measured[claimed == 0].sum()):.3g}",
            )
            excess = measured[claimed > 0] / claimed[claimed > 0] - 1
            if not len(excess):
                continue
            z = float(excess.mean().abs() / (excess.std() / len(excess) ** 0.5).clamp_min(1e-9))
            largest = max(largest, z)
            require(
                z <= STANDARD_ERRORS,
                f"slot {slot}: the measured error is {1 + float(excess.mean()):.4g} times the claimed one, {z:.1f} "
                "standard errors off",
            )
        if not claims:
            raise CheckSkipped("the scheme claims no error")
        return f"at most {largest:.1f} standard errors, {SEEDS} rounds"

    def knowledge(self) -> str:
        """Knowledge that the row does not declare is withheld, and the sums stay as they are.

        With "slow" and "none" the channel estimates change while the channels stay; with "none" the mean gains change
        too.
        """
        if self.row.knowledge == "instant":
            raise CheckSkipped('the row declares knowledge = "instant"')
        link = self.link(csi_error=0.3)
        network = link.network
        hidden = {"channel estimates": replace(network, names=("other estimates",))}
        if self.row.knowledge == "none":
            hidden["mean gains"] = replace(network, gain=7 * network.gain, scattered=7 * network.scattered)
        updates = random_updates(link, 0)
        expected = sums_of(uplink(link, 1, updates, initial_statistics(link)))
        for description, other in hidden.items():
            sums = sums_of(uplink(replace(link, network=other), 1, updates, initial_statistics(link)))
            change = sums_difference(sums, expected)
            require(
                change == 0,
                f"with other {description} but the same channels, the sums change by {100 * change:.3g} %, "
                f'but the row declares knowledge = "{self.row.knowledge}"',
            )
        return f"without {' and '.join(hidden)}"

    def ledger(self) -> str:
        """Costs are not negative, and a round takes time; a round without devices costs no energy."""
        for name, link in self.links().items():
            ((_, aggregate),) = self.rounds([link], [0])
            for key, value in aggregate.ledger.model_dump().items():
                require(value >= 0, f"{name}: {key} is {value}")
            for key in ("channel_uses", "ofdm_symbols", "air_seconds"):
                require(getattr(aggregate.ledger, key) > 0, f"{name}: {key} is 0 although gradients are sent")
        link = self.link()
        updates = replace(random_updates(link, 0), present=torch.zeros(5, dtype=torch.bool))
        empty = uplink(link, 1, updates, initial_statistics(link))
        require(empty.ledger.joules_max == 0, f"nobody sends, and joules_max is {empty.ledger.joules_max}")
        return f"{len(self.links())} uplinks"

    def power(self) -> str:
        """No device radiates more energy than its power limit allows in the channel uses of the round."""
        largest = 0.0
        for name, link in self.links().items():
            ((_, aggregate),) = self.rounds([link], [0])
            seconds = aggregate.ledger.channel_uses * use_seconds(link.bandwidth_hz)
            share = aggregate.ledger.joules_max / (float(link.power_limit.max()) * seconds)
            largest = max(largest, share)
            if share > 1 + 1e-6:
                raise BrokenContractError(
                    f"{name}: a device radiates {aggregate.ledger.joules_max:.4g} J in {aggregate.ledger.channel_uses} "
                    f"channel uses, {share:.4g} times what the largest power limit allows"
                )
        return f"at most {largest:.3f} of the largest limit"


def unusual_updates(link: Uplink) -> Mapping[str, Updates]:
    """Name -> gradients and devices of an unusual round."""
    updates = random_updates(link, 0)
    zeros = Updates(torch.zeros_like(updates.shared), torch.zeros_like(updates.personal), updates.present)
    constant = Updates(torch.ones_like(updates.shared), updates.personal, updates.present)

    def presence(*devices: int) -> Updates:
        mask = torch.zeros_like(updates.present)
        mask[list(devices)] = True
        return replace(updates, present=mask)

    return {
        "all devices": updates,
        "one device": presence(1),
        "no device of a task": presence(2, 3),
        "no device": presence(),
        "gradients of 0": zeros,
        "constant gradients": constant,
    }


def errors_of(aggregate: Aggregate) -> dict[str, SlotError]:
    """The errors of a round: `s`, or the name of a task -> record."""
    records = dict(aggregate.mse.p)
    return records if aggregate.mse.s is None else {"s": aggregate.mse.s, **records}


def sums_of(aggregate: Aggregate) -> tuple[Tensor, Tensor]:
    """The sums of a round."""
    return aggregate.shared, aggregate.personal
