"""Grids: ranges hold both ends, joined keys change together, what is wrong is told in a line."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpfed.config.grid import axes_of, check_count, grid_points, name_grid_point, overrides_of
from airpfed.core.errors import UserError
from support import checks


def test_values_are_taken_as_given() -> None:
    axes = axes_of(["radio.design=mmse,uniform_forcing", "tasks.*.devices=2, 4", "tasks.a.source=gym:chain_sum"])
    assert axes == {
        "radio.design": ["mmse", "uniform_forcing"], "tasks.*.devices": ["2", "4"], "tasks.a.source": ["gym:chain_sum"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("-10:20:10", ["-10", "0", "10", "20"]),
        ("0:1:0.25", ["0", "0.25", "0.5", "0.75", "1"]),
        ("3:0:-1", ["3", "2", "1", "0"]),
        ("1:10:4", ["1", "5", "9"]),
        ("5:5:1", ["5"]),
        ("1e-3:3e-3:1e-3", ["0.001", "0.002", "0.003"]),
        ("0,10:30:10,100", ["0", "10", "20", "30", "100"]),
    ],
)
def test_a_range_is_written_out(text: str, values: list[str]) -> None:
    assert axes_of([f"radio.power_dbm={text}"])["radio.power_dbm"] == values


@given(st.integers(-1000, 1000), st.integers(1, 300), st.integers(0, 50), st.sampled_from([1, -1]), st.integers(0, 4))
def test_a_range_holds_both_ends_and_every_step_exactly(
    first: int, step: int, count: int, sign: int, digits: int
) -> None:
    a, d = Decimal(first).scaleb(-digits), sign * Decimal(step).scaleb(-digits)
    found = axes_of([f"a.b={a:f}:{a + count * d:f}:{d:f}"])["a.b"]
    assert [Decimal(value) for value in found] == [a + k * d for k in range(count + 1)]


@pytest.mark.parametrize("text", ["0:10:0", "0:10:-1", "10:0:1", "0:1:1e-9"])
def test_a_range_that_leads_nowhere_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=rf"^--grid a.b={text}: {text} should be first:last:step") as caught:
        axes_of([f"a.b={text}"])
    assert "\n" not in str(caught.value)


def test_joined_keys_change_together() -> None:
    axes = axes_of(["adapters.rank_shared/adapters.rank_personal=8/0,4/4", "run.seed=1,2"])
    made = grid_points(axes)
    assert len(made) == 4 and made[0] == ("adapters.rank_shared/adapters.rank_personal=8/0", "run.seed=1")
    assert overrides_of(made[2]) == ["adapters.rank_shared=4", "adapters.rank_personal=4", "run.seed=1"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["a.b/a.c=1/2,3"], "--grid a.b/a.c=1/2,3: 3 should be 2 values joined by slashes"),
        (["a.b/a.c=1/2", "a.c=4"], "--grid a.c=4: a.c occurs in another --grid"),
        (["a.b=1,2:3:1"], None),
        (["a.b=1,0:2:1"], "--grid a.b=1,0:2:1: the value 1 occurs twice"),
    ],
)
def test_what_is_wrong_is_one_line(grid: list[str], message: str | None) -> None:
    if message is None:
        assert axes_of(grid) == {"a.b": ["1", "2", "3"]}
        return
    with pytest.raises(UserError) as caught:
        axes_of(grid)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_no_grid_is_one_point() -> None:
    assert grid_points({}) == [()] and overrides_of(()) == []


def test_the_option_and_the_point_are_named() -> None:
    with pytest.raises(UserError, match=r"^--tune server.lr: should be section.key=a,b,c"):
        axes_of(["server.lr"], "--tune")
    with pytest.raises(UserError, match=r"^--grid at a.b=1 c.d=2: too much"), name_grid_point(("a.b=1", "c.d=2")):
        raise UserError("too much")


@pytest.mark.parametrize(
    ("value", "remedy"),
    [(2.0, "a whole number"), (True, "a whole number"), (0, "at least 1"), (10**6, "at most 100000")],
)
def test_a_count_is_a_whole_number(value, remedy) -> None:
    checks.disarm("airpfed.config.grid", "check_count")
    with pytest.raises(UserError, match=rf"^draws {value}: should be {remedy}$"):
        check_count("draws", value)
