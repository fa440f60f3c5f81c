"""Samples into train, dev and test, and the training samples over devices. Fixed by the seed and the task's name."""

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
from jaxtyping import Float, Int

from airpfed.core.errors import UserError
from airpfed.core.rng import numpy_stream
from airpfed.tasks.sample import Sample

Samples = tuple[Sample, ...]


@dataclass(frozen=True)
class Shares:
    """How one task's samples are dealt out.

    devices: how many; 0 takes as many as the device column has values (split "column" only). samples_per_device: of
    every device (sizes "equal") or the mean of a log-normal whose logarithm has the standard deviation sizes_sigma.
    dirichlet_alpha: how even the classes of a device are: small for one class, large for the mix of all samples.
    split_as: the name that stands for the task's own where samples are split.
    """

    devices: int
    samples_per_device: int
    dev_samples: int
    test_samples: int
    split: Literal["iid", "dirichlet", "column"] = "iid"
    dirichlet_alpha: float = 1.0
    sizes: Literal["equal", "lognormal"] = "equal"
    sizes_sigma: float = 0.0
    split_as: str = ""


def split(
    samples: Samples, dev: int, test: int, seed: int, name: str, train: bool = True
) -> tuple[Samples, Samples, Samples]:
    """Train, dev and test in this order, disjoint, at random; test and dev are taken first, train is the rest.

    train: whether there must be something left to train on. Random: the order of the samples, stream (seed, "split",
    name). Raises UserError when there are too few samples.
    """
    if len(samples) < dev + test + train:
        left = "leave nothing to train on" if train else "are too many"
        raise UserError(
            f"tasks.{name}: test_samples = {test} and dev_samples = {dev} {left}; "
            f"there are {len(samples)} distinct samples"
        )
    order = numpy_stream(seed, "split", name).permutation(len(samples))
    shuffled = tuple(samples[index] for index in order)
    return shuffled[test + dev :], shuffled[test : test + dev], shuffled[:test]


def share(train: Samples, shares: Shares, seed: int, name: str) -> tuple[Samples, ...]:
    """The training samples of each device; every device has one at least, and no sample is given out twice.

    Where the samples do not suffice for all sizes, the sizes shrink in proportion. By column, a device takes up to its
    size of the samples that carry its value, devices in the order of their values. Random: sizes and who gets what,
    streams (seed, "sizes" | "share", name). Raises UserError when there are fewer samples than devices, when the column
    has another number of values than `devices`, and when a Dirichlet split has no classes.
    """
    match shares.split:
        case "column":
            groups = _by_column(train, shares.devices, name)
            wanted = sizes(shares, len(groups), seed, name)
            chosen = [group[:size] for group, size in zip(groups, wanted, strict=True)]
        case "iid":
            counts = _fit(sizes(shares, shares.devices, seed, name), len(train), name)
            order = numpy_stream(seed, "share", name).permutation(len(train))
            chosen = [part.tolist() for part in np.split(order[: counts.sum()], np.cumsum(counts)[:-1])]
        case "dirichlet":
            counts = _fit(sizes(shares, shares.devices, seed, name), len(train), name)
            chosen = _dirichlet(_labels(train, name), counts, shares.dirichlet_alpha, numpy_stream(seed, "share", name))
        case _:
            assert_never(shares.split)
    return tuple(tuple(train[index] for index in part) for part in chosen)


def sizes(shares: Shares, devices: int, seed: int, name: str) -> Int[np.ndarray, " {devices}"]:
    """Samples wanted per device, at least 1. Random when log-normal: stream (seed, "sizes", name); the mean is kept."""
    match shares.sizes:
        case "equal":
            return np.full(devices, max(1, shares.samples_per_device))
        case "lognormal":
            z = numpy_stream(seed, "sizes", name).standard_normal(devices)
            # E exp(sigma z - sigma^2 / 2) = 1
            drawn = shares.samples_per_device * np.exp(shares.sizes_sigma * z - shares.sizes_sigma**2 / 2)
            counts: Int[np.ndarray, " {devices}"] = np.clip(np.rint(drawn), 1, 2**31).astype(np.int64)
            return counts
        case _:
            assert_never(shares.sizes)


def _fit(wanted: Int[np.ndarray, " K"], available: int, name: str) -> Int[np.ndarray, " K"]:
    """The sizes, shrunk in proportion (above the one that every device keeps) where they exceed what is available."""
    devices, total = len(wanted), int(wanted.sum())
    if not 1 <= devices <= available:
        raise UserError(
            f"tasks.{name}.devices = {devices}: should be from 1 to {available}, the samples left to train on"
        )
    if total <= available:
        return wanted
    shrunk: Int[np.ndarray, " K"] = 1 + (wanted - 1) * (available - devices) // (total - devices)
    return shrunk


def _by_column(train: Samples, devices: int, name: str) -> list[list[int]]:
    """Positions of the samples of each value of the device column, values in sorted order."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(train):
        groups.setdefault(sample.device, []).append(index)
    if "" in groups:
        raise UserError(f"tasks.{name}.split is 'column', but no device_column is set; name one, or take 'iid'")
    if devices not in (0, len(groups)):
        raise UserError(
            f"tasks.{name}.devices = {devices}: the device column has {len(groups)} values among the training "
            f"samples; set devices to {len(groups)}"
        )
    return [groups[value] for value in sorted(groups)]


def _labels(train: Samples, name: str) -> Int[np.ndarray, " n"]:
    labels = np.array([sample.label for sample in train])
    if (labels < 0).any():
        raise UserError(f"tasks.{name}.split 'dirichlet' needs classes, and a 'generate' task has none; take 'iid'")
    return labels


def _dirichlet(
    labels: Int[np.ndarray, " n"], counts: Int[np.ndarray, " K"], alpha: float, rng: np.random.Generator
) -> list[list[int]]:
    """Positions of the samples of each device, class by class from the device's own class proportions.

    Proportions are Dir(alpha C p), p the shares of the C classes in `labels`: the symmetric Dir(alpha) where classes
    are balanced, and p itself in the limit (Hsu, Qi and Brown, 2019, scaled by C). Devices draw in turn, without
    replacement; where the classes that a device asks for are used up, it draws from what is left.
    """
    _, codes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    stacks = [rng.permutation(np.flatnonzero(codes == code)).tolist() for code in range(len(totals))]
    proportions = rng.dirichlet(alpha * len(totals) * totals / len(labels), size=len(counts))
    chosen: list[list[int]] = [[] for _ in counts]
    for turn in range(counts.max()):
        for device in np.flatnonzero(counts > turn):
            left = np.array([len(stack) for stack in stacks])
            chosen[device].append(stacks[_draw(proportions[device], left, rng)].pop())
    return chosen


def _draw(proportions: Float[np.ndarray, " C"], left: Int[np.ndarray, " C"], rng: np.random.Generator) -> int:
    """A class that has samples left: by `proportions`, or by what is left where those rule out every such class."""
    weights = np.where(left > 0, proportions, 0.0)
    if weights.sum() < 1e-12:
        weights = left.astype(float)
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
