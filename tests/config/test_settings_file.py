"""Differences of settings: the one flat form that resuming, comparing and reporting share."""

from airpfed.config.settings_file import differences, flatten_settings, parse_settings, varying_keys


def test_tables_in_a_list_go_by_their_names():
    tree = {"a": {"b": 1, "c": [1, 2]}, "tasks": [{"name": "x", "d": None}, {"name": "y", "d": 2}], "e": []}
    assert flatten_settings(tree) == {
        "a.b": 1, "a.c": [1, 2], "tasks": ["x", "y"], "tasks.x.name": "x", "tasks.x.d": None, "tasks.y.name": "y",
        "tasks.y.d": 2, "e": [],
    }  # fmt: skip


def test_keys_vary_where_a_row_lacks_them_too():
    assert varying_keys([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}]) == {"b": ["2", "3"], "c": ["-", "4"]}
    assert varying_keys([{"a": "1"}]) == {}


def test_differences_name_the_key_and_both_values():
    one, two = (
        {"tasks": [{"name": name, "devices": n}], "radio": {"snr_db": 10.0}} for name, n in (("x", 2), ("y", 3))
    )
    lines = differences(parse_settings(one, ""), parse_settings(two, ""), {})
    assert lines[0] == "tasks = ['y'] (was ['x'])" and "tasks.y.devices = 3 (was None)" in lines
    assert not any(line.startswith("radio") for line in lines)
