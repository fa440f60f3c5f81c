"""Transceivers of designs, computed once in a process for each design and problem."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from airpfed.air.designs import DESIGNS
from airpfed.air.problem import Transceiver, TransceiverProblem

_solved: dict[tuple[Any, ...], Transceiver] = {}


def solved(name: str, problem: TransceiverProblem) -> Transceiver:
    """The transceiver of a design with its own options."""
    return _once((name,), DESIGNS[name], problem)


def once(name: str, debias: bool = False) -> Callable[[TransceiverProblem], Transceiver]:
    """A design by its name; not for a test that changes how designs compute."""
    design = DESIGNS["debiased_mmse" if debias and name == "mmse" else name]
    return lambda problem: _once((name, debias), design, problem)


def _once(
    key: tuple[Any, ...], design: Callable[[TransceiverProblem], Transceiver], problem: TransceiverProblem
) -> Transceiver:
    for item in fields(problem):
        value = getattr(problem, item.name)
        key += (value.shape, value.numpy().tobytes()) if isinstance(value, Tensor) else (value,)
    if key not in _solved:
        _solved[key] = design(problem)
    transceiver = _solved[key]
    return replace(
        transceiver, transmit_factors=transceiver.transmit_factors.clone(), receiver=transceiver.receiver.clone()
    )
