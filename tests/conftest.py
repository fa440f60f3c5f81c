"""Fixtures of all tests. Nothing heavy is imported here: the process that only hands out tests reads this file too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import checks, forks
from support.models import save_bert, save_llama
from support.settings import make_settings


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fork what tests fork from, while nothing has computed; nothing does in the process that only hands out tests."""
    if session.items and not session.config.option.collectonly:
        forks.start()


def pytest_sessionfinish() -> None:
    forks.stop()


@pytest.fixture(autouse=True, scope="module")
def checked_calls() -> Iterator[None]:
    """First calls of every function are checked again in each module."""
    checks.rearm()
    yield
    checks.rearm()  # fixtures of the session call functions before the next module's own


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of 12 layers with random weights."""
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 12 layers with random weights and no head."""
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of 4 layers, for what does not depend on how many there are."""
    return save_llama(tmp_path_factory.mktemp("small"), num_hidden_layers=4)


@pytest.fixture
def llama_settings(tmp_path: Path, tiny_llama: Path) -> Path:
    return make_settings(tmp_path, tiny_llama)


@pytest.fixture
def small_settings(tmp_path: Path, small_llama: Path) -> Path:
    return make_settings(tmp_path, small_llama)


@pytest.fixture
def bert_settings(tmp_path: Path, tiny_bert: Path) -> Path:
    return make_settings(tmp_path, tiny_bert, causal=False)


@pytest.fixture(scope="module")
def shared_bases() -> Iterator[None]:
    """Commands in this process share base models, which are loaded once (`support.experiments`)."""
    from support import experiments

    with experiments.shared_bases():
        yield
