"""A settings file so small that a cell takes a second."""

from pathlib import Path

import pytest

from tiny import make_settings

QUICK = (
    "adapters.layers=last-2", "server.rounds=3", "radio.design=channel_inversion", "radio.coherence_symbols=5000",
    "tasks.*.test_samples=8", "run.eval_every=0",
)  # fmt: skip


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return make_settings(tmp_path_factory.mktemp("sweep"), tiny_llama)
