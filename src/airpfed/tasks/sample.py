"""What a task is once it is loaded: text in, text out, shared over devices."""

from dataclasses import dataclass
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
class Task:
    """One task of one run.

    labels: label words as a causal LM writes them, () for generate. train: one tuple of samples per device, none of
    them empty. dev, test: shared by the task's devices. No prompt stands in two of train, dev and test.
    source_sha256: of the raw rows after the removal of duplicates.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: tuple[tuple[Sample, ...], ...]
    dev: tuple[Sample, ...]
    test: tuple[Sample, ...]
    source_sha256: str
