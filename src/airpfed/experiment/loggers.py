"""Trackers: further outputs of a run's numbers, besides its own files.

A tracker is a callable that receives every record and at the end the summary. Another tracker (MLflow, W&B) is a
function here and a row of TRACKERS.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from airpfed.config.choice import Choice
from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict
from airpfed.core.run_files import RoundRecord, Summary

Tracker = Callable[[RoundRecord | Summary], None]


def open_tracker(choice: Choice, folder: Path) -> Tracker:
    """Open the tracker of `run.tracker` for a run's folder. Raises UserError if its function returns none."""
    tracker: Tracker = choice.bind()(folder)
    if not callable(tracker):
        raise UserError(
            f'run.tracker = "{choice.label}": should return a function of a record, not {type(tracker).__name__}'
        )
    return tracker


def scalars(row: RoundRecord | Summary) -> dict[str, float]:
    """Map the path of keys, `loss/trec`, to each number of a record or summary, without null, text and lists.

    >>> import airpfed as ap
    >>> numbers = {"mse": {}, "pi": 0.01, "pi_claimed": None, "ledger": {"air_seconds": 0.2}, "seconds": {}}
    >>> values = ap.scalars(ap.RoundRecord(round=3, loss={"trec": 1.25}, **numbers))
    >>> values["loss/trec"], values["pi"], values["ledger/air_seconds"], "pi_claimed" in values
    (1.25, 0.01, 0.2, False)
    """
    return dict(_flat("", row.model_dump(exclude={"round", "rounds"})))


def _flat(path: str, value: object) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(f"{path}/{key}" if path else str(key), inner)]
    return [(path, float(value))] if isinstance(value, (int, float)) else []


def no_tracker(_folder: Path) -> Tracker:
    """No further output."""
    return lambda row: None


def tensorboard(folder: Path) -> Tracker:
    """Event files for TensorBoard in the run's folder. A resumed run replaces repeated rounds.

    Raises UserError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            'run.tracker = "tensorboard": TensorBoard is not installed; run pip install "airpfed[trackers]"'
        ) from None
    writer: list[SummaryWriter] = []

    def track(row: RoundRecord | Summary) -> None:
        step = row.round if isinstance(row, RoundRecord) else row.rounds
        if not writer:
            writer.append(SummaryWriter(str(folder / "tensorboard"), purge_step=step))
        prefix = "" if isinstance(row, RoundRecord) else "summary/"
        for name, value in scalars(row).items():
            writer[0].add_scalar(prefix + name, value, step)
        writer[0].flush()
        if isinstance(row, Summary):
            writer.pop().close()

    return track


TRACKERS: RowDict[Callable[..., Tracker]] = RowDict(
    "tracker",
    {"none": no_tracker, "tensorboard": tensorboard},
    wrap=lambda function: function,
    function=lambda row: row,
)
"""run.tracker -> function `(run's folder, *, options)` that opens the tracker."""
