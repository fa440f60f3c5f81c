"""Rows enter checked, and their options are the keyword-only parameters of one function."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict, describe_type, entries_of, label_of, parse_call, split_outside_brackets


@dataclass(frozen=True)
class Recipe:
    cook: Callable[..., Any]
    salted: bool = False


def boil(
    water: float,
    *,
    minutes: Annotated[int, Field(ge=1, le=60, description="time in the pot")] = 8,
    heat: float = 1,
    name_of_pot: str = "pot",
    lid: bool = False,
    kind: Literal["soft", "hard"] = "soft",
    salts: tuple[str, ...] = (),
    spoons: Annotated[tuple[int, ...], Field(min_length=1)] | None = None,
    rest: Literal["off"] | float = "off",
) -> tuple[object, ...]:
    """Boil it.

    More words.
    """
    return water, minutes, heat, name_of_pot, lid, kind, salts, spoons, rest


def fry(oil: float, pan: str = "iron") -> float:
    return oil


def dicts(**rows: Any) -> RowDict[Recipe]:
    return RowDict("recipe", {"boil": Recipe(boil), **rows}, wrap=Recipe, function=lambda row: row.cook)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_options_are_the_keyword_only_parameters():
    options = {option.name: option for option in dicts().options("boil")}
    names = ["minutes", "heat", "name_of_pot", "lid", "kind", "salts", "spoons", "rest"]
    assert list(options) == names
    assert (options["minutes"].default, options["minutes"].meaning) == (8, "time in the pot")
    assert options["minutes"].accepts == "a whole number at least 1 and at most 60"
    assert options["kind"].accepts == 'one of "soft", "hard"' and options["lid"].accepts == "true or false"
    assert options["rest"].accepts == '"off" or a number' and options["spoons"].accepts.endswith("or absent")
    assert dicts(fry=fry).options("fry") == []


def test_every_option_has_its_value_in_the_form_of_its_type():
    """A default of 1 for a float and a given 1 are the same value 1.0: one form, one fingerprint."""
    rows = dicts()
    values = rows.resolve("boil", {})
    assert values["minutes"] == 8 and type(values["heat"]) is float
    assert repr(rows.resolve("boil", {"heat": 1})) == repr(values)
    given = rows.resolve("boil", {"salts": ["a", "b"], "spoons": [1, 2], "rest": 2})
    assert given["salts"] == ("a", "b") and given["spoons"] == (1, 2) and given["rest"] == 2.0


def test_a_bound_function_has_its_options():
    bound = dicts().bind("boil", {"minutes": 3})
    assert bound(2.0)[:2] == (2.0, 3)
    assert dicts(fry=fry).bind("fry", {}) is fry


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"minutes": 0}, ".minutes = 0: should be a whole number at least 1 and at most 60 (time in the pot)"),
        ({"minutes": 2.5}, ".minutes = 2.5: should be a whole number"),
        ({"minutes": "3"}, '.minutes = "3": should be a whole number'),
        ({"minutes": True}, ".minutes = True: should be a whole number"),
        ({"heat": float("inf")}, ".heat = inf: should be a number"),
        ({"lid": 1}, ".lid = 1: should be true or false"),
        ({"kind": "sof"}, '.kind = "sof": should be one of "soft", "hard"'),
        ({"salts": "a"}, '.salts = "a": should be a list'),
        ({"salts": ["a", 1]}, ".salts: item 2 = 1: should be text"),
        ({"spoons": []}, ".spoons = []: should be a list of at least 1 or absent"),
        ({"minute": 3}, ".minute: no option of boil; its options are minutes, heat"),
        ({"minute": 3}, "did you mean 'minutes'"),
        ({"water": 3.0}, ".water: no option of boil, because its function takes water by position"),
    ],
)
def test_a_wrong_option_is_one_line_with_what_would_be_right(options, line):
    assert line in refused(lambda: dicts().resolve("boil", options))


def test_a_row_without_options_says_so():
    assert ".x: no option of fry; it has no options" in refused(lambda: dicts(fry=fry).resolve("fry", {"x": 1}))


def test_an_option_without_a_default_is_needed():
    def bake(oven: float, *, degrees: Annotated[int, Field(gt=0, description="heat")]) -> None: ...

    line = refused(lambda: dicts(bake=bake).resolve("bake", {}))
    assert line == ".degrees: missing, bake needs it; should be a whole number greater than 0 (heat)"
    assert dicts(bake=bake).options("bake")[0].default is ...


def test_the_nearest_name_is_told():
    own = '; one of your own needs a plug-in, plugins = ["FILE.py"]'
    assert refused(lambda: dicts(fry=fry).find("boill")) == f"should be one of boil, fry; did you mean 'boil'?{own}"
    assert refused(lambda: dicts(fry=fry).find("x")) == f"should be one of boil, fry{own}"


# What enters


def no_type(p, *, x=1): ...
def many(p, **options: int): ...
def a_dict(p, *, x: dict[str, int] = {}): ...  # noqa: B006
def a_list_of_lists(p, *, x: tuple[tuple[int, ...], ...] = ()): ...
def an_object(p, *, x: Recipe = Recipe(boil)): ...
def bad_default(p, *, x: Annotated[int, Field(ge=1)] = 0): ...
def bad_type(p, *, x: int = 1.5): ...  # type: ignore[assignment]
def unknown_type(p, *, x: "Nowhere" = 1): ...
def called_name(p, *, name: str = ""): ...
def called_private(p, *, _x: int = 1): ...
def called_model(p, *, model_x: int = 1): ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_type, "option x has no type; it should be written x: float = ..."),
        (many, "**options hides the options; each should be a keyword-only parameter"),
        (a_dict, "option x has a type that a settings file cannot hold"),
        (a_list_of_lists, "option x has a type that a settings file cannot hold"),
        (an_object, "option x has a type that a settings file cannot hold"),
        (bad_default, "option x has the default 0, which its type forbids"),
        (bad_type, "option x has the default 1.5, which its type forbids"),
        (unknown_type, "the signature of its function cannot be read (name 'Nowhere' is not defined)"),
        (called_name, "an option cannot be called name; choose another name"),
        (called_private, "an option cannot be called _x"),
        (called_model, "an option cannot be called model_x"),
        (3, "should be a function, or a row as the other recipes are, not int"),
        (None, "should be a function, or a row as the other recipes are, not NoneType"),
        ("boil", "should be a function, or a row as the other recipes are, not str"),
        (Recipe(3), "should be a function, not int"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_row_is_refused_as_it_enters(function, words):
    rows = dicts()
    line = refused(lambda: rows.__setitem__("mine", function))
    assert line.startswith("recipe mine: ") and words in line
    assert "mine" not in rows
    assert words in refused(lambda: dicts(mine=function))
    with pytest.raises(UserError):
        rows |= {"mine": function}
    with pytest.raises(UserError):
        rows.update(mine=function)


@pytest.mark.parametrize("name", ["", "my row", "2fast", "a-b", "é", "a(b)", "_x", 3])
def test_a_name_that_needs_quotes_is_refused(name):
    assert "a name should be letters, digits and _" in refused(lambda: dicts().__setitem__(name, fry))


def test_a_row_of_another_kind_is_refused():
    @dataclass(frozen=True)
    class Other:
        taste: int = 1

    assert "recipe x: should be a function, or a row as the other recipes are, not Other" in refused(
        lambda: dicts().__setitem__("x", Other())
    )


def test_partials_objects_and_wrapped_functions_have_their_options():
    class Oven:
        def __call__(self, p: float, *, degrees: int = 180) -> int:
            return degrees

    def loud(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    rows = dicts(partial=functools.partial(boil, 1.0, minutes=3), oven=Oven(), loud=loud(boil))
    assert rows.resolve("partial", {})["minutes"] == 3 and rows.bind("partial", {"minutes": 4})()[1] == 4
    assert rows.resolve("oven", {"degrees": 200}) == {"degrees": 200} and rows.bind("oven", {})(1.0) == 180
    assert rows.resolve("loud", {}) == rows.resolve("boil", {})
    assert isinstance(rows["oven"], Recipe)


def test_types_may_be_written_as_texts():
    def steam(p: "float", *, minutes: "Annotated[int, Field(ge=2)]" = 5) -> None: ...

    assert ".minutes = 1: should be a whole number at least 2" in refused(
        lambda: dicts(steam=steam).resolve("steam", {"minutes": 1})
    )


def test_an_option_may_be_called_as_a_method_of_the_model():
    def serve(p: float, *, copy: int = 2, json: str = "", schema: float = 1.0) -> tuple[object, ...]:
        return copy, json, schema

    rows = dicts(serve=serve)
    assert rows.resolve("serve", {"copy": 3}) == {"copy": 3, "json": "", "schema": 1.0}
    assert rows.bind("serve", {"json": "x"})(1.0) == (2, "x", 1.0)


# Rows of plug-ins


def test_rows_of_a_plug_in_are_collected_and_never_stand_in_for_the_packages():
    rows = dicts()
    with entries_of("mine.py") as entries:
        rows["fry"] = fry
        inner = dicts()  # the module of a public dict may be imported by a plug-in first
        line = refused(lambda: rows.__setitem__("boil", fry))
    assert [(entry.name, entry.rows is rows) for entry in entries] == [("fry", True)]
    assert rows.origins == {"fry": "mine.py"} and inner.origins == {}
    assert line == "recipe boil: a row of airpfed has this name; choose another" and rows["boil"] == Recipe(boil)
    with entries_of("other.py"):
        rows["fry"] = boil
    assert rows["fry"].cook is boil and rows.origins["fry"] == "other.py"
    rows.restore(entries[0], "mine.py")
    assert rows["fry"].cook is fry and rows.origins["fry"] == "mine.py"
    rows["boil"] = fry  # in Python, assignment does it
    assert rows["boil"].cook is fry


# Labels and calls


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("mmse", {"name": "mmse"}),
        (" mmse ( starts = 4 ) ", {"name": "mmse", "starts": 4}),
        ("mmse()", {"name": "mmse"}),
        ("a(x=[1, 2], y='b, c', z=true)", {"name": "a", "x": [1, 2], "y": "b, c", "z": True}),
        ("a(x=b c/d.csv)", {"name": "a", "x": "b c/d.csv"}),
        ('a(x="q\\", z=1")', {"name": "a", "x": 'q", z=1'}),
        ("a(x=4 ≤ 5)", {"name": "a", "x": "4 ≤ 5"}),
    ],
)
def test_a_call_is_a_table_and_its_label_says_the_same(text, tree):
    assert parse_call(text) == tree
    assert parse_call(label_of(tree)) == tree


@pytest.mark.parametrize(
    "value", ["4", "true", "a, b", "a(b", "", " x", "x y", "[1]", 'q"q', "2020-01-01", "inf", "\n"]
)
def test_a_text_stays_a_text_in_a_label(value):
    tree = {"name": "row", "text": value, "number": 4, "list": [1.5, True, value]}
    assert parse_call(label_of(tree)) == tree


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a(4)", "'4' should be written option=value"),
        ("a(x=)", "'x=' should be written option=value"),
        ("a(x=1,)", "'' should be written option=value"),
        ("a(x=1, x=2)", "x stands twice"),
        ("a(name=b)", "name stands twice"),
        ("a(x=" + "[" * 9000 + "]" * 9000 + ")", "nested too deeply"),
        ("a(x=" + "9" * 9000 + ")", "too many digits"),
    ],
)
def test_what_is_no_call_is_told(text, words):
    with pytest.raises(ValueError, match=words):
        parse_call(text)


def test_values_of_a_grid_are_split_outside_brackets():
    assert split_outside_brackets("mmse(starts=4),a(x=[1,2],y='b,c'),z") == [
        "mmse(starts=4)",
        "a(x=[1,2],y='b,c')",
        "z",
    ]
    assert split_outside_brackets("What's it,Who's it") == ["What's it", "Who's it"]
    assert split_outside_brackets("a(f=b/c.csv)/2", "/") == ["a(f=b/c.csv)", "2"]
    assert split_outside_brackets(" ") == []


def test_a_schema_in_words():
    assert describe_type({"type": "number", "exclusiveMaximum": 2}) == "a number less than 2"


def test_an_open_bracket_is_told():
    with pytest.raises(ValueError, match=r"^a\(x=4: a bracket is open; should be name\(option=value\)"):
        parse_call("a(x=4")
