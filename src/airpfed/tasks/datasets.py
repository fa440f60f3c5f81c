"""Tasks from their sources: load, split, share."""

from collections.abc import Sequence
from dataclasses import replace

from airpfed.tasks.sample import Task
from airpfed.tasks.sources import Loaded, Source, load
from airpfed.tasks.split import Samples, Shares, share, sizes, split
from airpfed.tasks.text import folded


def build(source: Source, shares: Shares, seed: int) -> Task:
    """Load a task and deal its samples out, as `build_all` does with one."""
    return build_all([(source, shares)], seed)[0]


def build_all(wanted: Sequence[tuple[Source, Shares]], seed: int) -> tuple[Task, ...]:
    """Load tasks and deal their samples out.

    Tasks of one `shares.split_as` (its own name, where a task has none) are split alike, and what one holds out for dev
    or test none of them trains on, whatever rows each has. Random: the split (by the seed and that name) and the shares
    (by seed and task name). Raises UserError as `load`, `split` and `share` do.
    """
    parts: list[tuple[Loaded, Shares, Samples, Samples, Samples]] = []
    for source, shares in wanted:
        loaded = load(source, wanted_rows(shares, seed, source.name))
        if shares.split == "column" and shares.devices == 0:
            # Counted before the split, so that a value that only dev and test hold is reported, not lost.
            shares = replace(shares, devices=len({sample.device for sample in loaded.samples}))
        order = shares.split_as or source.name
        train, dev, test = split(loaded.samples, shares.dev_samples, shares.test_samples, seed, order)
        parts.append((loaded, shares, train, dev, test))
    tasks: list[Task] = []
    for (source, _), (loaded, shares, train, dev, test) in zip(wanted, parts, strict=True):
        order = shares.split_as or source.name
        held = {
            folded(sample.prompt)
            for (other, _), (_, theirs, _, *kept) in zip(wanted, parts, strict=True)
            if other.name != source.name and (theirs.split_as or other.name) == order
            for samples in kept
            for sample in samples
        }
        left = tuple(sample for sample in train if folded(sample.prompt) not in held) if held else train
        counts = replace(loaded.counts, barred=len(train) - len(left))
        devices = share(left, shares, seed, source.name)
        tasks.append(
            Task(source.name, loaded.kind, loaded.labels, devices, dev, test, loaded.sha256, loaded.names, counts)
        )
    return tuple(tasks)


def held_out(source: Source, shares: Shares, seed: int) -> Task:
    """A task whose training samples are on its devices: dev and test as `build` draws them, nothing to train on here.

    Raises UserError as `load` and `split` do.
    """
    loaded = load(source, wanted_rows(shares, seed, source.name))
    order = shares.split_as or source.name
    _, dev, test = split(loaded.samples, shares.dev_samples, shares.test_samples, seed, order, train=False)
    train = ((),) * shares.devices
    return Task(source.name, loaded.kind, loaded.labels, train, dev, test, loaded.sha256, loaded.names, loaded.counts)


def wanted_rows(shares: Shares, seed: int, name: str) -> int:
    """Rows that a generated task has: enough for all splits and devices."""
    return shares.dev_samples + shares.test_samples + int(sizes(shares, shares.devices, seed, name).sum())
