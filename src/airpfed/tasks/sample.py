"""Loaded tasks: samples of text, split into train, dev and test, and shared over devices."""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["classify", "generate", "chat"]
Message = tuple[str, str]
"""Role (system, user or assistant) and content."""


@dataclass(frozen=True)
class Sample:
    """One example.

    prompt: text that the model reads. answer: the label word (classify) or the completion (generate), with its leading
    space. label: index into Task.labels; -1 for texts. device, group: values of the device column and of the group
    column; "" without such a column. messages: the conversation (chat), whose last message is the reply `answer`;
    `prompt` then holds those before it as text.

    >>> import airpfed as ap
    >>> ap.Sample("What is the capital of France? Label:", " location", label=2).device
    ''
    """

    prompt: str
    answer: str
    label: int = -1
    device: str = ""
    group: str = ""
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Counts:
    """Numbers of a source's rows.

    rows: rows of the requested classes. skipped: rows without text or label. duplicates: rows whose prompt, after
    cutting, occurred before. contradictions: duplicates with another class or answer than the first occurrence.
    barred: samples removed from training because a task with the same `split_as` tests on them. notes: further lines
    for the user.
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

    labels: label words as a causal LM writes them; () for texts. train: samples of each device, at least one. dev,
    test: samples that the task's devices share. No prompt is in two of train, dev and test, not even in another
    spelling (`text.fold_case`). source_sha256: hash of the raw rows without duplicates. names: the source's class
    names, in the order of the labels.
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
