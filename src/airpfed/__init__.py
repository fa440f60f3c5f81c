"""AirPFed-LoRA: personalised, multi-task federated LoRA fine-tuning of LLMs over the air.

>>> import airpfed as ap
>>> network = ap.single_cell(devices=[4, 4, 4, 4], antennas=16, snr_db=10, seed=0)
>>> problem = network.problem(round=0, blocks=5)
>>> transceiver = ap.designs.mmse(problem)
>>> bool((ap.mse(problem, transceiver)[:, 0] >= ap.lower_bound(problem)).all())
True
>>> def mine(problem, *, truncation: float = 0.2):
...     return ap.designs.channel_inversion(problem, truncation=truncation)
>>> table = ap.link_study({"mine": mine, "mmse": ap.designs.mmse}, network, snr_db=[-10, 20], draws=5)
>>> table.pivot(index="snr_db", columns="design", values="nmse_db").round(0).to_dict()
{'mine': {-10: 5.0, 20: -11.0}, 'mmse': {-10: -5.0, 20: -32.0}}
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; a test holds it to the table below
    from airpfed import testing as testing
    from airpfed.air import designs as designs
    from airpfed.air.channels import CHANNELS as CHANNELS
    from airpfed.air.channels import Channel as Channel
    from airpfed.air.designs import DESIGNS as DESIGNS
    from airpfed.air.designs import Design as Design
    from airpfed.air.designs import lower_bound as lower_bound
    from airpfed.air.network import ChannelSite as ChannelSite
    from airpfed.air.problem import Transceiver as Transceiver
    from airpfed.air.problem import TransceiverProblem as TransceiverProblem
    from airpfed.air.problem import divide_power as divide_power
    from airpfed.air.problem import mse as mse
    from airpfed.air.schemes import SCHEMES as SCHEMES
    from airpfed.air.schemes import Scheme as Scheme
    from airpfed.air.slot_errors import received_sums as received_sums
    from airpfed.core.errors import UserError as UserError
    from airpfed.core.run_files import RoundRecord as RoundRecord
    from airpfed.core.run_files import Summary as Summary
    from airpfed.experiment.library import Experiment as Experiment
    from airpfed.experiment.library import Run as Run
    from airpfed.experiment.library import load_run as load_run
    from airpfed.experiment.loggers import TRACKERS as TRACKERS
    from airpfed.experiment.loggers import scalars as scalars
    from airpfed.experiment.predictor import Predictor as Predictor
    from airpfed.experiment.predictor import load_predictor as load_predictor
    from airpfed.experiment.predictor import predict as predict
    from airpfed.model.methods import METHODS as METHODS
    from airpfed.model.methods import Block as Block
    from airpfed.model.methods import Method as Method
    from airpfed.planning.cells import RadioNetwork as RadioNetwork
    from airpfed.planning.cells import cell_free as cell_free
    from airpfed.planning.cells import multi_cell as multi_cell
    from airpfed.planning.cells import single_cell as single_cell
    from airpfed.planning.link_frame import link_study as link_study
    from airpfed.sweeps.library import sweep as sweep
    from airpfed.tasks.metrics import METRICS as METRICS
    from airpfed.tasks.metrics import Metric as Metric
    from airpfed.tasks.sample import Sample as Sample
    from airpfed.tasks.sources import SOURCES as SOURCES
    from airpfed.tasks.split import SPLITS as SPLITS
    from airpfed.tasks.split import SampleSplit as SampleSplit
    from airpfed.training.aggregators import AGGREGATORS as AGGREGATORS
    from airpfed.training.aggregators import AggregatorRow as AggregatorRow
    from airpfed.training.aggregators import DeviceUpdates as DeviceUpdates
    from airpfed.training.optimizers import OPTIMIZERS as OPTIMIZERS
    from airpfed.training.schedules import SCHEDULES as SCHEDULES

_MODULES = {
    # The radio
    "single_cell": "airpfed.planning.cells",
    "multi_cell": "airpfed.planning.cells",
    "cell_free": "airpfed.planning.cells",
    "RadioNetwork": "airpfed.planning.cells",
    "link_study": "airpfed.planning.link_frame",
    "TransceiverProblem": "airpfed.air.problem",
    "Transceiver": "airpfed.air.problem",
    "mse": "airpfed.air.problem",
    "divide_power": "airpfed.air.problem",
    "lower_bound": "airpfed.air.designs",
    "designs": "airpfed.air",
    # Learning
    "Experiment": "airpfed.experiment.library",
    "Run": "airpfed.experiment.library",
    "load_run": "airpfed.experiment.library",
    "Predictor": "airpfed.experiment.predictor",
    "load_predictor": "airpfed.experiment.predictor",
    "predict": "airpfed.experiment.predictor",
    "sweep": "airpfed.sweeps.library",
    # What varies: public dicts, their rows, and what the rows' functions receive
    "DESIGNS": "airpfed.air.designs",
    "Design": "airpfed.air.designs",
    "SCHEMES": "airpfed.air.schemes",
    "Scheme": "airpfed.air.schemes",
    "received_sums": "airpfed.air.slot_errors",
    "CHANNELS": "airpfed.air.channels",
    "Channel": "airpfed.air.channels",
    "ChannelSite": "airpfed.air.network",
    "METHODS": "airpfed.model.methods",
    "Method": "airpfed.model.methods",
    "Block": "airpfed.model.methods",
    "SOURCES": "airpfed.tasks.sources",
    "SPLITS": "airpfed.tasks.split",
    "SampleSplit": "airpfed.tasks.split",
    "Sample": "airpfed.tasks.sample",
    "METRICS": "airpfed.tasks.metrics",
    "Metric": "airpfed.tasks.metrics",
    "OPTIMIZERS": "airpfed.training.optimizers",
    "SCHEDULES": "airpfed.training.schedules",
    "AGGREGATORS": "airpfed.training.aggregators",
    "AggregatorRow": "airpfed.training.aggregators",
    "DeviceUpdates": "airpfed.training.aggregators",
    "TRACKERS": "airpfed.experiment.loggers",
    "RoundRecord": "airpfed.core.run_files",
    "Summary": "airpfed.core.run_files",
    "scalars": "airpfed.experiment.loggers",
    # Everywhere
    "UserError": "airpfed.core.errors",
}
"""Public name -> the module that has it, which is imported when the name is first used."""

_SUBPACKAGES = ("testing",)
"""Subpackages that are public as they are."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import airpfed` takes no time."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"airpfed.{name}")
    if name not in _MODULES:
        import difflib

        near = difflib.get_close_matches(name, __all__, 1)
        raise AttributeError(
            f"module 'airpfed' has no attribute {name!r}" + (f". Did you mean: {near[0]!r}?" if near else "")
        )
    module = importlib.import_module(_MODULES[name])
    if not hasattr(module, name):  # a module, such as `designs`
        importlib.import_module(f"{_MODULES[name]}.{name}")
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
