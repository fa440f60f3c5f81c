"""An experiment from its settings to its report: objects, rounds, files of a run, and what a run prints."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airpfed.config.schema import Settings
    from airpfed.training.setup import TrainingSetup

REOPEN: "dict[str, Callable[[Settings, Path], TrainingSetup]]" = {}
"""How to rebuild the experiment of a run that `airpfed run` did not start, in order to read its checkpoint.

Key: name of a file in the checkpoint folder that only such runs have. Value: function of the run's settings and its
checkpoint folder. The package that makes these runs adds its entry.
"""
