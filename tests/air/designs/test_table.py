"""What our designs promise beyond the contract that `airpfed.testing` checks (tests/testing/test_designs.py)."""

import pytest

from airpfed.air.designs import DESIGNS
from airpfed.testing.designs import all_problems, worse_than_silence
from support.designs import solved

FORCING = ("uniform_forcing", "debiased_mmse")
"""They do not shrink a sum to nothing and can be worse than silence. Rows that say `shrinks` are checked anyway."""


@pytest.mark.parametrize("name", [name for name, row in DESIGNS.items() if name not in FORCING and not row.shrinks])
def test_designs_that_may_shrink_are_never_worse_than_silence(name):
    for label, problem in all_problems().items():
        assert worse_than_silence(problem, solved(name, problem)) <= 1e-6, label
