"""A settings file so small that a cell takes a second."""

from pathlib import Path

import pytest

from support.settings import make_settings


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Path:
    return make_settings(tmp_path_factory.mktemp("sweep"), small_llama)
