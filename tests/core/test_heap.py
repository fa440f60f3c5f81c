"""The search for garbage: off while packages and the first model are loaded, on after them."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from airpfed.core.memory import without_garbage_collection


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_only_the_first_block_is_without_collection() -> None:
    for first in (True, False):
        with without_garbage_collection():
            assert gc.isenabled() is not first
            gone = weakref.ref(Cycle())
        assert gc.isenabled()
        gc.collect()
        assert (gone() is not None) is first, "what was there at the first block's end is not looked at again"


def test_after_an_error_it_is_on_again() -> None:
    with pytest.raises(OSError), without_garbage_collection():
        raise OSError
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
