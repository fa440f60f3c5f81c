"""The how-to page and the examples in docstrings run, and print what they say."""

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest

KINDS = ["aggregators", "channels", "designs", "methods", "metrics", "optimizers", "schemes", "sources", "splits"]
KINDS += ["trackers"]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "check-your-row.md"


def test_the_page_runs_and_prints_what_it_shows():
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(code, PAGE.name, "exec"), names)
    lines = printed.getvalue().splitlines()
    shown = "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL)).splitlines()
    assert [line for line in shown if line.strip() != "..." and line not in lines] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_in_docstrings_run(kind):
    failed, count = doctest.testmod(importlib.import_module(f"airpfed.testing.{kind}"))
    assert (failed, count > 0) == (0, True)
