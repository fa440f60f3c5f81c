"""Shapes and types are checked while tests run, again in each module."""

import pytest
import torch
from jaxtyping import TypeCheckError

from airpfed.theory.constants import confidence_interval
from support import checks


def test_first_calls_are_checked_again_after_each_module() -> None:
    wrong, right = torch.ones(2, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeCheckError):
        confidence_interval(wrong)
    for _ in range(2 * checks.CALLS):
        confidence_interval(right)
    confidence_interval(wrong)
    checks.rearm()
    with pytest.raises(TypeCheckError):
        confidence_interval(wrong)
