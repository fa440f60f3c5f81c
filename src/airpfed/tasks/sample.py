"""What a task is once it is loaded: text in, text out, shared over devices."""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["classify", "generate"]


@dataclass(frozen=True)
class Sample:
    """One example.

    prompt: what the model reads. answer: the label word (classify) or the completion (generate), with its leading
    space. label: index into Task.labels; -1 for generate. device: value of the device column, "" if there is none.
    """

    prompt: str
    answer: str
    label: int = -1
    device: str = ""


@dataclass(frozen=True)
class Counts:
    """What became of a source's rows.

    rows: those of the classes that were asked for. skipped: without text or label. duplicates: whose text, once cut,
    had come before; contradictions: those of them with another class or answer than the first. barred: kept from
    training because a task that splits alike tests on them. notes: what else to tell, a line each.
    """

    rows: int = 0
    skipped: int = 0
    duplicates: int = 0
    contradictions: int = 0
    barred: int = 0
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Task:
    """One task of one run.

    labels: label words as a causal LM writes them, () for generate. train: one tuple of samples per device, none of
    them empty. dev, test: shared by the task's devices. No prompt stands in two of train, dev and test, in another
    spelling neither (`text.folded`). source_sha256: of the raw rows after the removal of duplicates. names: the classes
    as the source calls them, in the order of the labels.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: tuple[tuple[Sample, ...], ...]
    dev: tuple[Sample, ...]
    test: tuple[Sample, ...]
    source_sha256: str
    names: tuple[str, ...] = ()
    counts: Counts = Counts()
