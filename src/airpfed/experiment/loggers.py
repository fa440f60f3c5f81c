"""Where a run's numbers go besides its own files: one callable, fed with every record and at the end the summary.

Another tracker (MLflow, W&B) is one more function here and a row of TRACKERS.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from airpfed.core.errors import UserError
from airpfed.core.run_files import RoundRecord, Summary

Track = Callable[[RoundRecord | Summary], None]


def scalars(row: RoundRecord | Summary) -> dict[str, float]:
    """All numbers of a record or summary by the path of their keys, `loss/trec`; null, text and lists are left out."""
    return dict(_flat("", row.model_dump(exclude={"round", "rounds"})))


def _flat(path: str, value: object) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(f"{path}/{key}" if path else str(key), inner)]
    return [(path, float(value))] if isinstance(value, (int, float)) else []


def nowhere(_folder: Path) -> Track:
    """Keep nothing."""
    return lambda row: None


def tensorboard(folder: Path) -> Track:
    """Event files in `folder`/tensorboard; a resumed run replaces the rounds that it plays again.

    Raises UserError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            'run.tracker = "tensorboard": TensorBoard is not installed; run pip install "airpfed[tensorboard]"'
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


TRACKERS: Mapping[str, Callable[[Path], Track]] = {"none": nowhere, "tensorboard": tensorboard}
"""run.tracker -> what opens it in a run's directory."""
