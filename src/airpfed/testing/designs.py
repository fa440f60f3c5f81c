"""The contract of a transceiver design, checked on a fixed set of random problems."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from airpfed.air.designs import Design, Unbiased, lower_bound
from airpfed.air.impairments import Impairments
from airpfed.air.problem import (
    Transceiver,
    TransceiverProblem,
    gains,
    mse,
    objective,
    power_share,
    silent,
)
from airpfed.air.schedule import Updates
from airpfed.air.uplink import initial_statistics, uplink
from airpfed.core.rng import stream
from airpfed.testing.links import random_updates, small_uplink
from airpfed.testing.problems import (
    degenerate_problems,
    has_weight,
    in_other_units,
    permute_streams,
    random_problem,
    regular_problems,
    squared_errors,
)
from airpfed.testing.report import (
    BrokenContractError,
    CheckSkipped,
    Report,
    Subject,
    check_declarations,
    clone_tensors,
    describe_exception,
    largest_z,
    require,
    run_checks,
    subject_of,
    tensors_equal,
    with_global_seeds,
)

Solve = Callable[[TransceiverProblem], Transceiver]

TOLERANCE = 1e-3
"""Largest relative difference of two objectives that should be equal: designs stop at a tolerance of their own."""
GAIN_TOLERANCE = 1e-6
"""Largest relative error of a device's gain in a sum that is unbiased for every channel."""
STANDARD_ERRORS = 5.0
"""Largest deviation of a mean from its claim, in standard errors."""
DRAWS = 4000
"""Channel uses over which the error is measured."""


def check_design(design: Design | Callable[..., Transceiver] | str, **options: Any) -> Report:
    """Check a transceiver design: everything that the uplink, the link study and the notebooks rely on.

    design: a `Design`, a function `(problem, *, options) -> Transceiver`, or the name of a row of `DESIGNS`. options:
    its options. The problems have one and several targets, more devices than antennas, real symbols, channel estimation
    error, two streams a device, dead channels, no noise, and so on. Raises UserError for a function that cannot be a
    row, and for wrong options.

    >>> from airpfed import testing
    >>> report = testing.check_design("channel_inversion", truncation=0.3)
    >>> report.ok
    True
    """
    subject = subject_of("designs", design, options)
    trial = DesignTrial.solve_problems(subject)
    return run_checks(
        subject,
        [
            ("declarations", lambda: check_declarations(subject.row, unbiased=Unbiased)),
            ("solves every problem", trial.solves),
            ("finite", trial.finite),
            ("power limit", trial.power),
            ("problem is not changed", trial.problem_unchanged),
            ("deterministic", trial.deterministic),
            ("a block by itself", trial.independent_blocks),
            ("weights that differ by block", trial.batched_weights),
            ("units", trial.units),
            ("order of devices", trial.device_order),
            ("silent without a weight", trial.silence_without_weight),
            ("antennas of each receiver", trial.antenna_masks),
            ("only the problem is read", trial.knowledge),
            ("unbiased as claimed", trial.unbiased),
            ("error as claimed", trial.claimed_error),
            ("no worse than silence", trial.shrinkage),
            ("lower bound", trial.bound),
        ],
    )


@dataclass(frozen=True)
class DesignTrial:
    """A design and its transceivers for all problems. failures: name -> why a problem has no valid transceiver."""

    row: Design
    solve: Solve
    transceivers: Mapping[str, Transceiver]
    failures: Mapping[str, str]
    mutated: tuple[str, ...]

    @classmethod
    def solve_problems(cls, subject: Subject) -> "DesignTrial":
        """Solve all problems once."""
        transceivers, failures, mutated = dict[str, Transceiver](), dict[str, str](), list[str]()
        for name, problem in all_problems().items():
            copy = clone_tensors(problem)
            try:
                transceiver = subject.function(copy)
                fault = wrong_form(problem, transceiver)
            except Exception as error:  # of the user's design, which may raise anything
                fault = describe_exception(error)
            if fault:
                failures[name] = fault
            else:
                transceivers[name] = transceiver
            if not tensors_equal(problem, copy):
                mutated.append(name)
        return cls(subject.row, subject.function, transceivers, failures, tuple(mutated))

    def solutions(
        self, problems: Mapping[str, TransceiverProblem] | None = None
    ) -> Iterator[tuple[str, TransceiverProblem, Transceiver]]:
        """The problems with valid and finite transceivers: name, problem, transceiver. Skip the check without any."""
        count = 0
        for name, problem in (all_problems() if problems is None else problems).items():
            if name in self.transceivers and is_finite(self.transceivers[name]):
                count += 1
                yield name, problem, self.transceivers[name]
        if not count:
            raise CheckSkipped("no problem has a valid transceiver")

    def solves(self) -> str:
        """Every problem gets receivers (B, M, T) and transmit factors (B, K), complex128."""
        if self.failures:
            by_cause: dict[str, list[str]] = {}  # the words of a failure without their numbers -> problems
            for name, failure in self.failures.items():
                by_cause.setdefault(re.sub(r"\d+", "#", failure), []).append(name)
            causes = [
                f'"{names[0]}": {self.failures[names[0]]}'
                + (f" (and {len(names) - 1} more like it)" if names[1:] else "")
                for names in by_cause.values()
            ]
            raise BrokenContractError(f"{len(self.failures)} of {len(all_problems())} problems: {'; '.join(causes)}")
        return f"{len(all_problems())} problems"

    def finite(self) -> str:
        """No entry is infinite or NaN."""
        for name, transceiver in self.transceivers.items():
            for part in ("receiver", "transmit_factors"):
                bad = (~getattr(transceiver, part).isfinite()).flatten(1).sum(1)
                require(
                    not bool(bad.any()),
                    f'"{name}": {int(bad.sum())} entries of {part} are infinite or NaN, in block {int(bad.argmax())}',
                )
        return f"{len(self.transceivers)} problems"

    def power(self) -> str:
        """|b_k|^2 <= P_k in every block; streams of a device share its limit."""
        largest = 0.0
        for name, problem, transceiver in self.solutions():
            share = power_share(problem, transceiver)
            largest = max(largest, float(share.max()))
            first = int((share.flatten() >= share.max() * (1 - 1e-9)).int().argmax())  # the first of equal ones
            block, number = divmod(first, share.shape[1])
            require(
                largest <= 1 + 1e-9,
                f'"{name}": stream {number} in block {block} sends {largest:.6g} times the power limit of its device',
            )
        return f"at most {largest:.9f} of a limit"

    def problem_unchanged(self) -> str:
        """The tensors of the problem are as before the call."""
        require(not self.mutated, f'"{(*self.mutated, "")[0]}": the design changes the tensors of its problem')
        return ""

    def deterministic(self) -> str:
        """The same problem gives the same bits, whatever was solved before and whatever the global generators hold."""
        for name in ("one target", "several targets", "channel estimation error"):
            if name not in self.transceivers:
                continue
            problem = all_problems()[name]
            first, second = with_global_seeds(partial(self._solve_copy, problem))
            for other in (first, second):
                difference = largest_difference(other, self.transceivers[name])
                require(
                    difference == 0,
                    f'"{name}": two calls differ by {difference:.3g} of the largest entry; a design may be neither '
                    "random nor remember earlier problems",
                )
        return "equal bits"

    def independent_blocks(self) -> str:
        """A block's result is the same alone, beside other blocks, and beside channels 10^4 times as strong."""
        largest = 0.0
        for name, problem, _ in self.solutions(select_problems(*BATCHED)):
            alone = float(self._objective(replace(problem, h=problem.h[:1]))[0])
            strong = replace(problem, h=torch.cat([problem.h[:1], 1e4 * problem.h[1:]]))
            for description, batch, index in (
                ("blocks of stronger channels", strong, 0),
                ("other blocks", replace(problem, h=problem.h.flip(0)), len(problem.h) - 1),
            ):
                beside = float(self._objective(batch)[index])
                difference = relative(beside, alone)
                largest = max(largest, difference)
                require(
                    difference <= TOLERANCE,
                    f'"{name}": the objective of a block is {alone:.6g} alone and {beside:.6g} beside {description}',
                )
        return f"objectives differ by {largest:.1e} at most"

    def batched_weights(self) -> str:
        """Weights (B, 1, K) give each block what it gets alone; for a row that says `batched`."""
        if not self.row.batched:
            raise CheckSkipped("the row does not say batched")
        largest = 0.0
        for name, problem, _ in self.solutions(select_problems("one target", "one target, more devices than antennas")):
            weights = torch.stack([problem.weights.roll(shift, -1) for shift in range(len(problem.h))])
            together = self._objective(replace(problem, weights=weights))
            for block in range(len(problem.h)):
                alone = replace(problem, h=problem.h[block : block + 1], weights=weights[block])
                difference = relative(float(together[block]), float(self._objective(alone)[0]))
                largest = max(largest, difference)
                require(
                    difference <= TOLERANCE,
                    f'"{name}": the objective of block {block} differs by {difference:.2g} from that of the block '
                    "alone with its weights",
                )
        return f"objectives differ by {largest:.1e} at most"

    def units(self) -> str:
        """Watts or milliwatts, volts or microvolts, and sums of another scale change nothing but units."""
        return self._invariant({"power": (1e3, 1.0, 1.0), "channels": (1.0, 3e5, 1.0), "weights": (1.0, 1.0, 11.0)})

    def device_order(self) -> str:
        """The streams in another order give the same objective."""
        return self._invariant({})

    def _invariant(self, scales: Mapping[str, tuple[float, float, float]]) -> str:
        """Require that the objective does not depend on the scales of units or, without scales, on the order."""
        largest = 0.0
        for name, problem, transceiver in self.solutions(phase_invariant_problems()):
            expected = objective(problem, transceiver)
            if self.joint_changes[name] <= TOLERANCE:
                largest = max(largest, self.joint_changes[name])
                continue
            for quantity, scale in scales.items():
                change = self._change(in_other_units(problem, *scale), expected, scale[2])
                require(
                    change <= TOLERANCE,
                    f'"{name}": with {quantity} in units {max(scale):g} times as small, the objective changes by '
                    f"{100 * change:.3g} %",
                )
            if not scales:
                order = torch.randperm(problem.h.shape[-1], generator=stream(1, "order", name))
                change = self._change(permute_streams(problem, order), expected, 1.0)
                require(
                    change <= TOLERANCE,
                    f'"{name}": with the devices in another order, the objective changes by {100 * change:.3g} %',
                )
        return f"objectives differ by {largest:.1e} at most"

    @cached_property
    def joint_changes(self) -> Mapping[str, float]:
        """Name -> relative change of the objective with other units and another order of devices at once."""
        changes = {}
        for name, problem, transceiver in self.solutions(phase_invariant_problems()):
            order = torch.randperm(problem.h.shape[-1], generator=stream(1, "order", name))
            other = permute_streams(in_other_units(problem, 1e3, 3e5, 11.0), order)
            changes[name] = self._change(other, objective(problem, transceiver), 11.0)
        return changes

    def _change(self, problem: TransceiverProblem, expected: Tensor, sums: float) -> float:
        """The largest relative change of the objective; infinite if it is NaN. sums: the scale of the weights."""
        change = ((self._objective(problem) / sums**2 - expected).abs() / expected).nan_to_num(nan=torch.inf)
        return float(change.max())

    def silence_without_weight(self) -> str:
        """A device that no target includes does not send."""
        for name, problem, transceiver in self.solutions():
            idle = ~has_weight(problem).expand(len(problem.h), -1)
            power = (transceiver.transmit_factors.abs().square() * idle).max()
            require(
                not bool(power > 0), f'"{name}": a device whose weight is 0 in all targets sends {float(power):.3g} W'
            )
        return ""

    def antenna_masks(self) -> str:
        """A receiver is 0 at antennas that are not its own."""
        for name, problem, transceiver in self.solutions(select_problems("receivers at different antennas")):
            assert problem.antenna_mask is not None
            outside = float((transceiver.receiver.abs() * ~problem.antenna_mask.mT).max())
            require(
                outside == 0,
                f'"{name}": a receiver has the entry {outside:.3g} at an antenna that `antenna_mask` excludes',
            )
        return ""

    def knowledge(self) -> str:
        """In a round, transceivers depend neither on the true channels nor on the symbols that devices will send."""
        if self.failures.keys() & set(regular_problems()):
            raise CheckSkipped("the design does not solve every regular problem")
        problems, transceivers = self._round(Impairments(), negate=False)
        for description, impairments, negate in (
            ("true channels (phase errors, outage)", Impairments(phase_rad=0.7, outage=0.3), False),
            ("gradients", Impairments(), True),
        ):
            same_problems, others = self._round(impairments, negate)
            assert tensors_equal(problems, same_problems)
            difference = max(map(largest_difference, others, transceivers))
            require(
                difference == 0,
                f"with other {description} but the same problem, transceivers change by {difference:.3g} of the "
                "largest entry: the design reads more than its problem",
            )
        return f"{len(problems)} problems of a round"

    def _round(self, impairments: Impairments, negate: bool) -> tuple[list[TransceiverProblem], list[Transceiver]]:
        """The problems and transceivers of a round over the small uplink."""
        problems, transceivers = list[TransceiverProblem](), list[Transceiver]()

        def record(problem: TransceiverProblem) -> Transceiver:
            problems.append(problem)
            transceivers.append(self.solve(problem))
            return silent(problem)

        link = small_uplink(send=None, design=record, csi_error=0.1, impairments=impairments)
        updates = random_updates(link, 0)
        sign = -1.0 if negate else 1.0
        updates = Updates(sign * updates.shared, sign * updates.personal, updates.present)
        uplink(link, 1, updates, initial_statistics(link))
        return problems, transceivers

    def unbiased(self) -> str:
        """The gain of each device in its sum is its weight: for every channel, or in the mean over fading."""
        if self.row.unbiased == "given the channel":
            return self._unbiased_gains()
        if self.row.unbiased == "over fading":
            return self._unbiased_over_fading()
        raise CheckSkipped('the row claims unbiased = "no"')

    def _unbiased_gains(self) -> str:
        largest = 0.0
        for name, problem, transceiver in self.solutions(regular_problems()):
            ratio = gain_ratio(problem, transceiver)
            difference = (ratio - 1).abs()
            largest = max(largest, float(difference.max()))
            block, device = divmod(int(difference.argmax()), ratio.shape[1])
            require(
                float(difference.max()) <= GAIN_TOLERANCE,
                f'"{name}": device {device} arrives with {describe_ratio(ratio[block, device])} of its weight in block '
                f'{block}, but the row claims unbiased = "given the channel"',
            )
        return f"gains differ from weights by {largest:.1e} at most"

    def _unbiased_over_fading(self) -> str:
        largest = 0.0
        for targets in (1, 2):
            problem = random_problem(400, 6, 4, targets, near_far=False)
            ratio = gain_ratio(problem, self.solve(problem))
            z = largest_z(torch.cat([ratio.real - 1, ratio.imag], 1))
            device = int((ratio.mean(0) - 1).abs().argmax())
            largest = max(largest, z)
            require(
                z <= STANDARD_ERRORS,
                f"over {len(ratio)} channels device {device} arrives with {describe_ratio(ratio[:, device].mean())} "
                f'of its weight, {z:.1f} standard errors off, but the row claims unbiased = "over fading"',
            )
        return f"at most {largest:.1f} standard errors"

    def claimed_error(self) -> str:
        """The error of symbols sent through antennas and noise is that of `air.problem.mse`."""
        largest = 0.0
        for name, problem, transceiver in self.solutions(select_problems(*MEASURED)):
            claimed = mse(problem, transceiver)
            errors = squared_errors(problem, transceiver, DRAWS, stream(2, "uses", name))
            z = largest_z(errors - claimed)
            largest = max(largest, z)
            ratio = float((errors.mean(0) / claimed).max())
            require(
                z <= STANDARD_ERRORS,
                f'"{name}": the measured error is {ratio:.4g} times the claimed one, {z:.1f} standard errors off',
            )
        return f"at most {largest:.1f} standard errors"

    def shrinkage(self) -> str:
        """A design that shrinks is nowhere worse than silence."""
        if not self.row.shrinks:
            raise CheckSkipped("the row does not say shrinks")
        for name, problem, transceiver in self.solutions():
            excess = worse_than_silence(problem, transceiver)
            require(excess <= 1e-6, f'"{name}": the objective is {1 + excess:.6g} times that of silence')
        return ""

    def bound(self) -> str:
        """No transceiver within the limits has an error below the lower bound."""
        ratio = float("inf")
        for name, problem, transceiver in self.solutions(select_problems(*BOUNDED)):
            error = mse(problem, transceiver)[:, 0]
            ratio = min(ratio, float((error / bounds()[name]).min()))
            require(ratio >= 1 - 1e-9, f'"{name}": the error is {ratio:.6g} times the lower bound of every transceiver')
        return f"at least {ratio:.4g} times the bound"

    def _solve_copy(self, problem: TransceiverProblem) -> Transceiver:
        return self.solve(clone_tensors(problem))

    def _objective(self, problem: TransceiverProblem) -> Tensor:
        return objective(problem, self._solve_copy(problem))


BATCHED = ("one target", "several targets, more devices than antennas", "channel estimation error")
MEASURED = (
    "one target",
    "several targets",
    "real packing",
    "channel estimation error",
    "receivers at different antennas",
)
BOUNDED = ("one target", "one target, more devices than antennas")


@cache
def bounds() -> Mapping[str, Tensor]:
    """The lower bounds of the problems of BOUNDED."""
    return {name: lower_bound(problem) for name, problem in select_problems(*BOUNDED).items()}


def all_problems() -> Mapping[str, TransceiverProblem]:
    """Name -> problem: the regular and the degenerate ones."""
    return {**regular_problems(), **degenerate_problems()}


def phase_invariant_problems() -> Mapping[str, TransceiverProblem]:
    """The regular problems whose objective does not depend on the phase of each receiver by itself.

    With real symbols and several targets it does, through the real part of the interference, and a design for complex
    symbols leaves that phase to rounding.
    """
    return {n: problem for n, problem in regular_problems().items() if not problem.real or len(problem.weights) == 1}


def select_problems(*names: str) -> Mapping[str, TransceiverProblem]:
    """The problems of these names."""
    return {name: regular_problems()[name] for name in names}


def wrong_form(problem: TransceiverProblem, transceiver: Any) -> str:
    """Why a design's result is no transceiver of the problem; empty if it is one."""
    if not isinstance(transceiver, Transceiver):
        return f"returns a {type(transceiver).__name__}; should be a Transceiver"
    blocks, antennas, devices = problem.h.shape
    shapes = {"receiver": (blocks, antennas, problem.weights.shape[-2]), "transmit_factors": (blocks, devices)}
    for part, shape in shapes.items():
        value = getattr(transceiver, part)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != torch.complex128:
            form = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            return f"{part} is {form}; should be {shape} torch.complex128"
        if value.requires_grad:
            return f"{part} has a gradient; should be detached, or computed under torch.no_grad()"
    return ""


def is_finite(transceiver: Transceiver) -> bool:
    """Whether no entry of a transceiver is infinite or NaN."""
    return bool(transceiver.receiver.isfinite().all() and transceiver.transmit_factors.isfinite().all())


def gain_ratio(problem: TransceiverProblem, transceiver: Transceiver) -> Tensor:
    """The gain of each stream in its target's estimate over its weight, (B, K); real for real symbols."""
    weights = problem.weights.sum(-2)
    ratio = (gains(problem.h, transceiver) * (problem.weights > 0)).sum(1) / weights
    return ratio.real.to(ratio.dtype) if problem.real else ratio


def describe_ratio(ratio: Tensor) -> str:
    """Write a complex ratio, without an imaginary part that is rounding."""
    value = complex(ratio)
    return f"{value.real:.6g}" if abs(value.imag) <= 1e-9 * abs(value) else f"{value.real:.6g}{value.imag:+.3g}j"


def worse_than_silence(problem: TransceiverProblem, transceiver: Transceiver) -> float:
    """The largest excess of the objective over that of silence, relative to it; at most 0 if nowhere worse."""
    value, reference = objective(problem, transceiver), objective(problem, silent(problem))
    return float(((value - reference) / reference.clamp_min(1e-300)).max())


def relative(value: float, expected: float) -> float:
    """The relative difference of two numbers."""
    return abs(value - expected) / max(abs(expected), 1e-300)


def largest_difference(first: Transceiver, second: Transceiver) -> float:
    """The largest difference of two transceivers' entries, relative to the largest entry of each part."""
    differences = []
    for part in ("receiver", "transmit_factors"):
        a, b = getattr(first, part), getattr(second, part)
        if a.shape != b.shape:
            return float("inf")
        differences.append(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)))
    return max(differences)
