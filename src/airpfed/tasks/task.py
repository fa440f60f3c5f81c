"""One task from its source: load, split, share."""

from dataclasses import replace

from airpfed.tasks.load import Source, load
from airpfed.tasks.sample import Task
from airpfed.tasks.split import Shares, share, sizes, split


def build(source: Source, shares: Shares, seed: int) -> Task:
    """Load a task and deal its samples out.

    Random: the split (by the seed and the task's name, or `shares.split_as`) and the shares (by seed and name).
    Raises UserError as `load`, `split` and `share` do.
    """
    loaded = load(source, wanted(shares, seed, source.name))
    if shares.split == "column" and shares.devices == 0:
        # Counted before the split, so that a value that only dev and test hold is reported, not lost.
        shares = replace(shares, devices=len({sample.device for sample in loaded.samples}))
    order = shares.split_as or source.name
    train, dev, test = split(loaded.samples, shares.dev_samples, shares.test_samples, seed, order)
    devices = share(train, shares, seed, source.name)
    return Task(source.name, loaded.kind, loaded.labels, devices, dev, test, loaded.sha256)


def held_out(source: Source, shares: Shares, seed: int) -> Task:
    """A task whose training samples are on its devices: dev and test as `build` draws them, nothing to train on here.

    Raises UserError as `load` and `split` do.
    """
    loaded = load(source, wanted(shares, seed, source.name))
    _, dev, test = split(loaded.samples, shares.dev_samples, shares.test_samples, seed, source.name, train=False)
    return Task(source.name, loaded.kind, loaded.labels, ((),) * shares.devices, dev, test, loaded.sha256)


def wanted(shares: Shares, seed: int, name: str) -> int:
    """Rows that a generated task has: enough for all splits and devices."""
    return shares.dev_samples + shares.test_samples + int(sizes(shares, shares.devices, seed, name).sum())
