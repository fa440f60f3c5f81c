"""Rows from outside the package: how they enter, and when two of them count as the same."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from airpfed.air.designs import DESIGNS, Design, channel_inversion, mmse
from airpfed.config.schema import Settings
from airpfed.config.settings_file import settings_from_tree
from airpfed.config.user_rows import add_row, source_sha256, user_functions
from airpfed.core.errors import UserError


@pytest.fixture(autouse=True)
def designs() -> Iterator[None]:
    before = dict(DESIGNS)
    yield
    DESIGNS.data.clear()
    DESIGNS.data.update(before)


def mine(problem, *, truncation: float = 0.2):
    return channel_inversion(problem, truncation=truncation)


def settings(**radio: Any) -> Settings:
    return Settings.model_validate({"tasks": [{"name": "sms"}, {"name": "trec"}], "radio": radio})


def test_a_function_enters_under_its_name_and_may_be_replaced() -> None:
    assert add_row("radio.design", mine) == "mine"
    assert DESIGNS["mine"].solve is mine
    row = Design(mine, shrinks=True)
    assert add_row("radio.design", row) == "mine"
    assert DESIGNS["mine"] is row


def test_a_function_of_the_package_is_its_row() -> None:
    rows = dict(DESIGNS)
    assert add_row("radio.design", mmse) == "mmse"
    assert add_row("radio.design", DESIGNS["mmse"]) == "mmse"
    assert dict(DESIGNS) == rows


def of_name(name: str) -> Any:
    function = FunctionType(mine.__code__, globals(), name, None, mine.__closure__)
    function.__kwdefaults__, function.__annotations__ = mine.__kwdefaults__, mine.__annotations__
    return function


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (of_name("mmse"), "design mmse: the package has a design of this name"),
        ("mmse", "design: should be a function or a row, not 'mmse'"),
        (lambda problem: problem, "a name should be letters"),
        (lambda problem, **options: problem, "design"),
    ],
)
def test_what_cannot_enter_is_one_line(row: Any, words: str) -> None:
    rows = dict(DESIGNS)
    with pytest.raises(UserError, match=words) as caught:
        add_row("radio.design", row)
    assert "\n" not in str(caught.value)
    assert dict(DESIGNS) == rows


def test_only_functions_from_outside_are_listed() -> None:
    assert user_functions(settings(design="mmse")) == {}
    add_row("radio.design", mine)
    functions = user_functions(settings(design="mine"))
    assert functions == {"radio.design": {"name": "mine", "sha256": source_sha256(DESIGNS["mine"])}}


def in_text(body: str, name: str = "f") -> Any:
    """A function whose source no file holds."""
    space: dict[str, Any] = {}
    exec(f"def {name}(x, *, a: float = 1.0):\n    return {body}", space)
    return space[name]


def closed(number: float) -> Any:
    def inner(x):
        return x * number

    return inner


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (mine, mine, True),
        (in_text("x + 1"), in_text("x + 1"), True),
        (in_text("x + 1"), in_text("x + 2"), False),
        (in_text("(lambda: x + 1)()"), in_text("(lambda: x + 2)()"), False),
        (in_text("x.sin()"), in_text("x.cos()"), False),
        *[(one, two, False) for one, two in [(lambda x: x + 1, lambda x: x + 2)]],
        (closed(1.0), closed(1.0), True),
        (closed(1.0), closed(2.0), False),
        (Design(mine), Design(mine, shrinks=True), False),
        (Design(mine), Design(mine, share_energy=closed), False),
        (partial(mine, truncation=0.1), partial(mine, truncation=0.2), False),
        (partial(mine, truncation=0.1), partial(mine, truncation=0.1), True),
    ],
)
def test_equal_hashes_mean_equal_sources(one: Any, two: Any, same: bool) -> None:
    assert (source_sha256(one) == source_sha256(two)) is same


def test_rows_of_a_plug_in_file_are_hashed_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text(
        "from airpfed.air.designs import DESIGNS, channel_inversion\n\n"
        "def plugged(problem):\n    return channel_inversion(problem)\n\n"
        'DESIGNS["plugged"] = plugged\n'
    )
    tree = {"plugins": ["plug.py"], "tasks": [{"name": "sms"}], "radio": {"design": "plugged"}}
    read = settings_from_tree(tree, "settings", tmp_path)
    assert read.radio.design.row.solve.__name__ == "plugged"
    assert user_functions(read) == {}

    def plugged(problem):
        return channel_inversion(problem)

    with pytest.raises(UserError, match=r"design plugged: the plug-in .*plug\.py has one of this name"):
        add_row("radio.design", plugged)
