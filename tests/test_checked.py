"""Shapes and types are checked while tests run, again in each."""

import pytest
import torch
from jaxtyping import TypeCheckError

import checked
from airpfed.theory.constants import confidence_interval


@pytest.mark.parametrize("turn", [1, 2])
def test_first_calls_of_each_test_are_checked(turn: int) -> None:
    wrong, right = torch.ones(2, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeCheckError):
        confidence_interval(wrong)
    for _ in range(2 * checked.CALLS):
        confidence_interval(right)
    confidence_interval(wrong)
    checked.begin()
    with pytest.raises(TypeCheckError):
        confidence_interval(wrong)
