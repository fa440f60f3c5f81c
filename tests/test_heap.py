"""The search for garbage: off while packages and models are loaded, and nothing that a load left is kept for good."""

import gc
import weakref

import pytest

from airpfed.heap import uncollected


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_nothing_is_collected_in_the_block_and_the_next_one_collects_what_it_left() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        gone = weakref.ref(Cycle())
    assert gc.isenabled()
    gc.collect()
    assert gone() is not None, "what was there at the block's end is not looked at again"
    with uncollected():
        assert gone() is None
    gc.unfreeze()


def test_an_error_leaves_the_search_as_it_was() -> None:
    with pytest.raises(OSError), uncollected():
        raise OSError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
