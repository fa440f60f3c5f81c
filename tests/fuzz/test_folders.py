"""A sample of damaged folders, the same in every run; `python -m fuzz.folders` plays all."""

import random
from pathlib import Path

import pytest

from fuzz.folders import Case, Folders, cases, check

pytestmark = pytest.mark.usefixtures("shared_bases")

CHOSEN = [
    Case("finished", "records.jsonl", "missing", "run"),
    Case("finished", "checkpoint/latest.json", "missing", "run --resume"),
    Case("stopped", "checkpoint/latest.json", "missing", "run --resume"),
    Case("finished", "experiment.toml", "all others missing", "run --resume"),
    Case("finished", "adapters", "all others missing", "run"),
    Case("finished", "summary.json", "not UTF-8", "report"),
    Case("finished", "layout.json", "a table", "report"),
    Case("finished", "environment.json", "deep", "report"),
    Case("finished", "records.jsonl", "not UTF-8", "run --resume"),
    Case("finished", "theory.json", "not UTF-8", "bound"),
    Case("finished", "theory.json", "half", "run --resume"),
    Case("finished", "checkpoint/latest.json", "a list", "export"),
    Case("finished", "checkpoint/base.json", "a list", "run --resume"),
    Case("finished", "records.jsonl", "half", "compare"),
    Case("finished", "adapters/moods", "a folder", "export"),
    Case("sweep", "cells/0/records.jsonl", "half", "sweep"),
    Case("sweep", "cells/0/environment.json", "garbage", "sweep"),
    Case("sweep", "cells/0/checkpoint/latest.json", "garbage", "sweep"),
    Case("sweep", "cells/0/records.jsonl", "empty", "compare"),
    Case("sweep", "cells/0/records.jsonl", "half", "sweep --reuse"),
    Case("sweep", "base/0.json", "a list", "sweep"),
    Case("plan", "plan.json", "not UTF-8", "bound --plan"),
    Case("plan", "plan.json", "a list", "bound --plan"),
]
SAMPLE = random.Random(20).sample([case for case in cases() if case not in CHOSEN], 24)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("sound") / "home")


@pytest.mark.parametrize("case", [*CHOSEN, *SAMPLE], ids=lambda case: " ".join(vars(case).values()))
def test_a_damaged_folder_is_refused_or_made_again(case: Case, folders: Folders, tmp_path: Path) -> None:
    assert check(case, folders, tmp_path / "work") in ("accepted", "refused", "made again")


def test_there_are_cases_enough_and_each_outcome_occurs(folders: Folders, tmp_path: Path) -> None:
    """An oracle that everything passes, or that refuses everything, would say nothing."""
    assert len(cases()) >= 300
    expected = {"notes.txt": "accepted", "records.jsonl": "refused", "layout.json": "made again"}
    for file, outcome in expected.items():
        assert check(Case("finished", file, "empty", "run --resume"), folders, tmp_path / "work") == outcome
