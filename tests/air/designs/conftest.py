"""Problems to test designs on, and the antenna-by-antenna specification of a slot: those of `airpfed.testing`."""

from collections.abc import Callable

import pytest
from torch import Tensor

from airpfed.air.problem import TransceiverProblem
from airpfed.testing.problems import random_problem, squared_errors
from support.single_thread import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def make_slot() -> Callable[..., TransceiverProblem]:
    return random_problem


@pytest.fixture(scope="session")
def measure() -> Callable[..., Tensor]:
    return squared_errors
