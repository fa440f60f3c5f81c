"""What the tests of sweeps share: settings of a cell that takes a second, summaries of runs that never were."""

import random
from statistics import fmean

from airpfed.core.run_files import Ledger, Summary, TaskSummary

QUICK = (
    "adapters.layers=last-2", "server.rounds=3", "radio.design=channel_inversion", "radio.coherence_symbols=5000",
    "tasks.*.test_samples=8", "run.eval_every=0",
)  # fmt: skip


def summary(finals: dict[str, float | None], dev: float | None = None, **fields: object) -> Summary:
    tasks = {
        name: TaskSummary(metric="accuracy", base=0.2, final=final, samples=10, dev=dev)
        for name, final in finals.items()
    }
    known = [final for final in finals.values() if final is not None]
    made = Summary(
        method="airpfed", rounds=3, tasks=tasks, average=fmean(known) if known else None, average_base=0.2, pi_mean=0.1,
        ledger=Ledger(air_seconds=2.0), seconds={"gradients": random.random()}, exit="completed",
    )  # fmt: skip
    return made.model_copy(update=fields)
