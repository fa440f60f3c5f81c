"""The tutorials, as a reader runs them: each cell in order, within a minute of its own, with its pictures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import airpfed

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
RUN = """
import runpy, sys
import matplotlib.pyplot as plt
runpy.run_path(sys.argv[1])
print("figures", len(plt.get_fignums()))
"""


@pytest.mark.notebook
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_shows_pictures(path):
    # The CPU time of one thread, which is the time on an idle machine, whatever else runs beside.
    environment = {"MPLBACKEND": "Agg", "PYTHONPATH": str(Path(airpfed.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    before = os.times()
    process = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 60
    assert int(process.stdout.split()[-1]) >= path.read_text(encoding="utf-8").count("plt.show()") > 0


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_cells_of_code_and_words(path):
    """A notebook editor reads it: every cell begins with a mark, and words stand in comments."""
    cells = path.read_text(encoding="utf-8").split("# %%")
    assert cells[0] == "" and len(cells) > 10
    words = [cell for cell in cells if cell.startswith(" [markdown]")]
    assert len(words) > 4
    for cell in words:
        assert all(line.startswith("#") for line in cell.splitlines()[1:] if line), cell
    assert "**Look" in "".join(words) or "**look" in "".join(words)
