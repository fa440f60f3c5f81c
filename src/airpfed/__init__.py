"""AirPFed-LoRA: personalised, multi-task federated LoRA fine-tuning of LLMs over the air.

Everything below loads on first use, so that `import airpfed` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airpfed.experiment.library import Experiment as Experiment
    from airpfed.experiment.library import Run as Run
    from airpfed.experiment.library import load_run as load_run
    from airpfed.sweeps.library import sweep as sweep

_NAMES = {
    # learning
    "Experiment": "airpfed.experiment.library",
    "Run": "airpfed.experiment.library",
    "load_run": "airpfed.experiment.library",
    "sweep": "airpfed.sweeps.library",
}
"""Public name -> the module that defines it."""

__all__ = ["Experiment", "Run", "load_run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *_NAMES})
