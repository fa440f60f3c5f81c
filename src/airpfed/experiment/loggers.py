"""Trackers: further outputs of a run's numbers, besides its own files.

A tracker is a callable that receives every record and at the end the summary.
"""

import importlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

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


def mlflow(
    folder: Path,
    *,
    tracking_uri: Annotated[
        str, Field(description="address of an MLflow server or database; empty: mlflow/mlflow.db in the run's folder")
    ] = "",
    experiment: Annotated[str, Field(min_length=1, description="name of the experiment in MLflow")] = "airpfed",
) -> Tracker:
    """Metrics for MLflow, by default in a database in the run's folder, which needs no network.

    A resumed run is one more MLflow run of the same name. Raises UserError if MLflow is not installed.
    """
    if not tracking_uri:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    library = import_tracker("mlflow", "MLflow", "mlflow")
    client: list[Any] = []
    run_id = ""

    def track(row: RoundRecord | Summary) -> None:
        nonlocal run_id
        if not client:
            if not tracking_uri:
                (folder / "mlflow").mkdir(parents=True, exist_ok=True)
            home = folder.absolute() / "mlflow"
            client.append(library.MlflowClient(tracking_uri=tracking_uri or f"sqlite:///{home / 'mlflow.db'}"))
            known = client[0].get_experiment_by_name(experiment)
            location = None if tracking_uri else (home / "artifacts").as_uri()
            number = known.experiment_id if known else client[0].create_experiment(experiment, location)
            run_id = client[0].create_run(number, run_name=folder.absolute().name).info.run_id
        step, now = row.round if isinstance(row, RoundRecord) else row.rounds, int(1000 * time.time())
        prefix = "" if isinstance(row, RoundRecord) else "summary/"
        metrics = [  # MLflow refuses names with other characters
            library.entities.Metric(re.sub(r"[^\w\-. /]", "_", prefix + name), value, now, step)
            for name, value in scalars(row).items()
        ]
        client[0].log_batch(run_id, metrics=metrics)
        if isinstance(row, Summary):
            client.pop().set_terminated(run_id, "FINISHED" if row.exit == "completed" else "KILLED")

    return track


def wandb(
    folder: Path,
    *,
    project: Annotated[str, Field(min_length=1, description="name of the project in Weights & Biases")] = "airpfed",
    mode: Annotated[
        Literal["offline", "online"],
        Field(description="offline: files in the run's folder, which `wandb sync` sends; online: sent at once"),
    ] = "offline",
) -> Tracker:
    """Metrics for Weights & Biases, by default offline, in files in the run's folder.

    A resumed run is one more run there, of the same name and group. Raises UserError if the library is not installed.
    """
    library = import_tracker("wandb", "Weights & Biases", "wandb")
    run: list[Any] = []

    def track(row: RoundRecord | Summary) -> None:
        if not run:
            name, settings = folder.absolute().name, library.Settings(silent=True, console="off")
            run.append(
                library.init(project=project, dir=str(folder), mode=mode, name=name, group=name, settings=settings)
            )
        if isinstance(row, RoundRecord):
            run[0].log(scalars(row), step=row.round)
        else:
            run[0].summary.update({f"summary/{name}": value for name, value in scalars(row).items()})
            run.pop().finish(exit_code=0 if row.exit == "completed" else 1)

    return track


def import_tracker(module: str, name: str, extra: str) -> Any:
    """Import the library of a tracker. Raises UserError with the extra of airpfed that installs it if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f'run.tracker = "{module}": {name} is not installed; run pip install "airpfed[{extra}]"'
        ) from None


TRACKERS: RowDict[Callable[..., Tracker]] = RowDict(
    "tracker",
    {"none": no_tracker, "tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb},
    wrap=lambda function: function,
    function=lambda row: row,
)
"""run.tracker -> function `(run's folder, *, options)` that opens the tracker."""
