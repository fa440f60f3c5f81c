"""Shapes and types are checked while tests run, again in each module."""

import pytest
import torch
from jaxtyping import TypeCheckError

<<<<<<< HEAD:tests/test_checked.py
import checked
from airpfed.theory.constants import confidence_interval
=======
from airpfed.theory.constants import interval
from support import checks
>>>>>>> d016f47:tests/test_shape_checks.py


def test_first_calls_are_checked_again_after_each_module() -> None:
    wrong, right = torch.ones(2, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeCheckError):
<<<<<<< HEAD:tests/test_checked.py
        confidence_interval(wrong)
    for _ in range(2 * checked.CALLS):
        confidence_interval(right)
    confidence_interval(wrong)
    checked.begin()
=======
        interval(wrong)
    for _ in range(2 * checks.CALLS):
        interval(right)
    interval(wrong)
    checks.rearm()
>>>>>>> d016f47:tests/test_shape_checks.py
    with pytest.raises(TypeCheckError):
        confidence_interval(wrong)
