"""Tasks from their sources: samples split into train, dev and test, and the training samples shared over devices.

The results depend only on the source, the seed and the task's name.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, assert_never

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from airpfed.core.errors import UserError
from airpfed.core.rng import numpy_stream
from airpfed.core.rows import RowDict
from airpfed.tasks.sample import Sample, Task
from airpfed.tasks.sources import Source, SourceData, load_source
from airpfed.tasks.text import fold_case

Samples = tuple[Sample, ...]


@dataclass(frozen=True)
class Shares:
    """How one task's samples are split and shared.

    devices: number of devices; 0 takes one device per value of the device column (split "column" only).
    samples_per_device: the size of every device (sizes "equal"), or the mean of a log-normal distribution whose
    logarithm has the standard deviation sizes_sigma. split, split_options: name of a row of `SPLITS`, and its options.
    split_as: the name that takes the place of the task's name when samples are split. stratify: whether dev and test
    have the class shares of all samples.
    """

    devices: int
    samples_per_device: int
    dev_samples: int
    test_samples: int
    split: str = "iid"
    split_options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Literal["equal", "lognormal"] = "equal"
    sizes_sigma: float = 0.0
    split_as: str = ""
    stratify: bool = False


def build_tasks(sources: Sequence[tuple[Source, Shares]], seed: int) -> tuple[Task, ...]:
    """Load tasks, split their samples, and share the training samples over devices.

    Tasks with the same `shares.split_as` (by default the task's own name) are shuffled alike, and none of them trains
    on a sample, or on a group of samples, that another of them holds out for dev or test. Random: the split (seed and
    `split_as`) and the shares (seed and task name). Raises UserError as `load_source`, `split_samples` and
    `share_samples` do.
    """
    parts: list[tuple[SourceData, Shares, Samples, Samples, Samples]] = []
    for source, shares in sources:
        data = load_source(source, required_rows(shares, seed, source.name))
        if shares.devices == 0:
            # Counted before the split: a value that occurs in dev and test only is then an error and not ignored.
            shares = replace(shares, devices=len({sample.device for sample in data.samples}))
        order = shares.split_as or source.name
        train, dev, test = split_samples(
            data.samples, shares.dev_samples, shares.test_samples, seed, order, stratify=shares.stratify
        )
        parts.append((data, shares, train, dev, test))
    tasks: list[Task] = []
    for (source, _), (data, shares, train, dev, test) in zip(sources, parts, strict=True):
        order = shares.split_as or source.name
        held_out = [
            sample
            for (other, _), (_, other_shares, _, *other_samples) in zip(sources, parts, strict=True)
            if other.name != source.name and (other_shares.split_as or other.name) == order
            for samples in other_samples
            for sample in samples
        ]
        prompts, groups = (
            {fold_case(sample.prompt) for sample in held_out},
            {sample.group for sample in held_out} - {""},
        )
        allowed = train
        if held_out:
            allowed = tuple(s for s in train if fold_case(s.prompt) not in prompts and s.group not in groups)
        devices = share_samples(allowed, shares, seed, source.name)
        counts = replace(data.counts, barred=len(train) - len(allowed), notes=group_notes(data, train, dev, test))
        tasks.append(Task(source.name, data.kind, data.labels, devices, dev, test, data.sha256, data.names, counts))
    return tuple(tasks)


def build_test_task(source: Source, shares: Shares, seed: int) -> Task:
    """A task without training samples, for a server whose devices hold them; dev and test as in `build_tasks`.

    Raises UserError as `load_source` and `split_samples` do.
    """
    data = load_source(source, required_rows(shares, seed, source.name))
    order = shares.split_as or source.name
    _, dev, test = split_samples(
        data.samples, shares.dev_samples, shares.test_samples, seed, order, train=False, stratify=shares.stratify
    )
    train = ((),) * shares.devices
    return Task(source.name, data.kind, data.labels, train, dev, test, data.sha256, data.names, data.counts)


def required_rows(shares: Shares, seed: int, name: str) -> int:
    """Rows to generate for a generated task, or to read of a stream: enough for all splits and devices."""
    return shares.dev_samples + shares.test_samples + int(device_sizes(shares, shares.devices, seed, name).sum())


def split_samples(
    samples: Samples, dev: int, test: int, seed: int, name: str, train: bool = True, stratify: bool = False
) -> tuple[Samples, Samples, Samples]:
    """Train, dev and test samples, in this order. Test and dev are taken first; train is the remainder.

    Samples with a group are split group by group: no group is in two of the parts, and the samples by which a group
    would exceed test or dev are in none. train: whether at least one training sample must remain. stratify: whether
    each class has the same share of test, dev and train, to the nearest sample. Random: the order of the samples,
    stream (seed, "split", name), and of the groups, (seed, "split groups", name). Raises UserError where there are too
    few samples.
    """
    order = numpy_stream(seed, "split", name).permutation(len(samples))
    shuffled = tuple(samples[index] for index in order)
    if any(sample.group for sample in samples):
        parts = _split_groups(shuffled, dev, test, numpy_stream(seed, "split groups", name))
    elif stratify and len(samples) >= dev + test:
        (chosen_test, rest) = _take_stratified(shuffled, test)
        (chosen_dev, rest) = _take_stratified(rest, dev)
        parts = rest, chosen_dev, chosen_test
    else:
        parts = shuffled[test + dev :], shuffled[test : test + dev], shuffled[:test]
    if len(parts[0]) < train or len(parts[1]) < dev or len(parts[2]) < test:
        left = "leave nothing to train on" if train else "are too many"
        groups = len({sample.group for sample in samples} - {""})
        raise UserError(
            f"tasks.{name}: test_samples = {test} and dev_samples = {dev} {left}; "
            f"there are {len(samples)} distinct samples" + (f" of {groups} groups" if groups else "")
        )
    return parts


def _split_groups(shuffled: Samples, dev: int, test: int, rng: np.random.Generator) -> tuple[Samples, Samples, Samples]:
    """Train, dev and test samples of disjoint groups: test and dev take group after group until they are full."""
    groups: dict[str, list[Sample]] = {}
    for sample in shuffled:
        groups.setdefault(sample.group, []).append(sample)
    names = sorted(groups)
    order = [groups[names[index]] for index in rng.permutation(len(names))]
    held_out: list[list[Sample]] = []
    for size in (test, dev):
        part: list[Sample] = []
        while len(part) < size and order:
            part += order.pop(0)
        held_out.append(part[:size])
    remaining = {sample.group for group in order for sample in group}
    return tuple(s for s in shuffled if s.group in remaining), tuple(held_out[1]), tuple(held_out[0])


def _take_stratified(samples: Samples, size: int) -> tuple[Samples, Samples]:
    """The first `size` samples with the class shares of all (largest remainders), and the others; order is retained."""
    counts = Counter(sample.label for sample in samples)
    exact = {label: size * count / max(1, len(samples)) for label, count in counts.items()}
    quota = {label: int(share) for label, share in exact.items()}
    ranked = sorted(exact, key=lambda label: (int(exact[label]) - exact[label], label))
    for label in ranked[: size - sum(quota.values())]:
        quota[label] += 1
    chosen, others = list[Sample](), list[Sample]()
    for sample in samples:
        (chosen if quota[sample.label] > 0 else others).append(sample)
        quota[sample.label] -= 1
    return tuple(chosen), tuple(others)


def group_notes(data: SourceData, *parts: Samples) -> tuple[str, ...]:
    """The notes about a source, with a line on the groups of its samples if it has groups. parts: train, dev, test."""
    groups = [len({sample.group for sample in part} - {""}) for part in parts]
    if not sum(groups):
        return data.counts.notes
    line = f"groups in train, dev and test: {groups[0]}, {groups[1]} and {groups[2]}, none in two of them"
    surplus = len(data.samples) - sum(map(len, parts))
    more = f"; {surplus:,} samples are in none, because the other samples of their group fill dev or test"
    return (*data.counts.notes, line + (more if surplus else ""))


def share_samples(train: Samples, shares: Shares, seed: int, name: str) -> tuple[Samples, ...]:
    """The training samples of each device: at least one per device, and no sample twice.

    Where there are too few samples for all sizes, the sizes shrink in proportion. With split "column", a device takes
    up to its size of the samples with its value; devices are in the order of the values. Random: sizes and assignment,
    streams (seed, "sizes" | "share", name). Raises UserError where there are fewer samples than devices, where the
    column has another number of values than `devices`, and where a Dirichlet split has no classes.
    """
    row = SPLITS.find(shares.split)
    share = SPLITS.bind(shares.split, shares.split_options)
    devices = shares.devices
    if row.by_value:
        values = len({sample.device for sample in train} - {""})
        if devices not in (0, values):
            raise UserError(
                f"tasks.{name}.devices = {devices}: the device column has {values} values among the training samples; "
                f"set devices to {values}"
            )
        counts = device_sizes(shares, values, seed, name)
    else:
        counts = _shrink(device_sizes(shares, devices, seed, name), len(train), name)
    try:
        chosen = share(train, counts, numpy_stream(seed, "share", name))
    except ValueError as error:
        raise UserError(f'tasks.{name}.split = "{shares.split}": {error}') from None
    check_shares(chosen, len(train), len(counts), f'tasks.{name}.split = "{shares.split}"')
    return tuple(tuple(train[index] for index in part) for part in chosen)


def device_sizes(shares: Shares, devices: int, seed: int, name: str) -> Int[np.ndarray, " {devices}"]:
    """Requested samples of each device, at least 1.

    Log-normal sizes have the mean `samples_per_device`. Random: log-normal sizes, stream (seed, "sizes", name).
    """
    match shares.sizes:
        case "equal":
            return np.full(devices, max(1, shares.samples_per_device))
        case "lognormal":
            z = numpy_stream(seed, "sizes", name).standard_normal(devices)
            # E exp(sigma z - sigma^2 / 2) = 1
            values = shares.samples_per_device * np.exp(shares.sizes_sigma * z - shares.sizes_sigma**2 / 2)
            counts: Int[np.ndarray, " {devices}"] = np.clip(np.rint(values), 1, 2**31).astype(np.int64)
            return counts
        case _:
            assert_never(shares.sizes)


def _shrink(sizes: Int[np.ndarray, " K"], available: int, name: str) -> Int[np.ndarray, " K"]:
    """The sizes, shrunk in proportion to their excess over 1 where their sum exceeds the available samples."""
    devices, total = len(sizes), int(sizes.sum())
    if not 1 <= devices <= available:
        raise UserError(
            f"tasks.{name}.devices = {devices}: should be from 1 to {available}, the samples left to train on"
        )
    if total <= available:
        return sizes
    shrunk: Int[np.ndarray, " K"] = 1 + (sizes - 1) * (available - devices) // (total - devices)
    return shrunk


Indices = Sequence[Sequence[int]]
"""Indices of the samples of each device."""


@dataclass(frozen=True)
class SampleSplit:
    """A way to split a task's training samples over its devices.

    share: (samples, counts, rng, *, options) -> the indices of each device's samples, no sample twice; counts: wanted
    number of each device, (K). Raises ValueError for samples that it cannot split. by_value: devices are the values of
    a column of the data, in sorted order; then a device may get fewer samples than wanted.

    >>> import numpy, airpfed as ap
    >>> samples = tuple(ap.Sample(f"text {number}", " yes", label=0) for number in range(6))
    >>> ap.SPLITS["iid"].share(samples, numpy.array([2, 3]), numpy.random.default_rng(0))
    [[3, 2], [5, 4, 0]]
    """

    share: Callable[..., Indices]
    by_value: bool = False


def iid(samples: Samples, counts: Int[np.ndarray, " K"], rng: np.random.Generator) -> Indices:
    """Every device draws from the mix of all samples."""
    order = rng.permutation(len(samples))
    return [part.tolist() for part in np.split(order[: counts.sum()], np.cumsum(counts)[:-1])]


def column(
    samples: Samples,
    counts: Int[np.ndarray, " K"],
    rng: np.random.Generator,
    *,
    column: Annotated[str, Field(min_length=1, description="column that names a sample's device")],
) -> Indices:
    """A device for each value of a column of the data, in the order of the values."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.device, []).append(index)
    if "" in groups:
        raise ValueError(f"a sample has no value in the column {column}")
    return [groups[value][:size] for value, size in zip(sorted(groups), counts, strict=True)]


def dirichlet(
    samples: Samples,
    counts: Int[np.ndarray, " K"],
    rng: np.random.Generator,
    *,
    alpha: Annotated[
        float, Field(gt=0, le=1e6, description="small: each device has one class; large: the mix of all samples")
    ] = 0.5,
) -> Indices:
    """Label skew: the class proportions of each device are drawn from a Dirichlet distribution.

    Proportions are Dir(alpha C p), with p the shares of the C classes in the samples: the symmetric Dir(alpha) for
    balanced classes, and p itself in the limit of large alpha (Hsu, Qi and Brown, 2019, scaled by C). In each pass, all
    unfinished devices draw one sample without replacement; a device whose classes are exhausted draws from the
    remaining samples.
    """
    labels = np.array([sample.label for sample in samples])
    if (labels < 0).any():
        raise ValueError('needs classes, and a task that writes text has none; take "iid"')
    _, codes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    stacks = [rng.permutation(np.flatnonzero(codes == code)).tolist() for code in range(len(totals))]
    proportions = rng.dirichlet(alpha * len(totals) * totals / len(labels), size=len(counts))
    chosen: list[list[int]] = [[] for _ in counts]
    for number in range(counts.max()):
        for device in np.flatnonzero(counts > number):
            left = np.array([len(stack) for stack in stacks])
            chosen[device].append(stacks[_draw_class(proportions[device], left, rng)].pop())
    return chosen


def _draw_class(proportions: Float[np.ndarray, " C"], left: Int[np.ndarray, " C"], rng: np.random.Generator) -> int:
    """A class with remaining samples, drawn by `proportions`, or by the remaining numbers where all of these are 0."""
    weights = np.where(left > 0, proportions, 0.0)
    if weights.sum() < 1e-12:
        weights = left.astype(float)
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def check_shares(chosen: Indices, samples: int, devices: int, source: str) -> None:
    """Raise UserError unless a split gives every device a sample, and no sample twice."""
    used = [int(index) for part in chosen for index in part]
    if len(chosen) != devices or not all(len(part) for part in chosen):
        raise UserError(f"{source}: should give each of the {devices} devices a sample; it gave {len(chosen)} parts")
    if len(set(used)) != len(used) or not all(0 <= index < samples for index in used):
        raise UserError(f"{source}: should give indices of samples, none twice")


SPLITS: RowDict[SampleSplit] = RowDict(
    "split",
    {"iid": SampleSplit(iid), "dirichlet": SampleSplit(dirichlet), "column": SampleSplit(column, by_value=True)},
    wrap=SampleSplit,
    function=lambda row: row.share,
)
"""The splits that `tasks.split` knows."""
