"""A settings file so small that a cell takes a second."""

from pathlib import Path

import pytest

from tiny import make_settings


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return make_settings(tmp_path_factory.mktemp("sweep"), tiny_llama)
