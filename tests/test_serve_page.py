"""docs/how-to/serve.md as a reader follows it in the folder of `airpfed init`: commands, and Python by PEFT alone."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import airpfed as ap
from support.commands import command, good
from test_how_to import base as base
from test_how_to import blocks_of, start

pytestmark = pytest.mark.usefixtures("shared_bases")

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "serve.md"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """The folder of `airpfed init` after `airpfed run`, with a tiny base."""
    folder = tmp_path_factory.mktemp("serve")
    start(folder, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        good(command("run"))
    return folder


def test_commands_and_their_answers(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on the run of this page; the quick start's would fetch its base."""
    monkeypatch.chdir(desk)
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    airpfed ")]
    outputs = {line: good(command(*shlex.split(line, comments=True)[1:])) for line in lines if "quickstart" not in line}
    assert len(outputs) == 4
    with (desk / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200 and {"prediction", "probability", "p_calm", "p_angry", "text"} <= set(rows[0])
    (alone,) = (done.out for line, done in outputs.items() if "adapters/tone" in line)
    assert [json.loads(line)["prediction"] for line in alone.splitlines()] == [row["prediction"] for row in rows]
    assert (desk / "runs/experiment/merged/topic/task.json").is_file()


def test_the_python_blocks(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for PEFT runs on a folder that was copied away, and answers the test split as the run does."""
    monkeypatch.chdir(desk)
    ours, peft = (text for language, text in blocks_of("serve") if language == "python" and "quickstart" not in text)
    exec(compile(ours, "serve.md", "exec"), {})
    shutil.copytree("runs/experiment/adapters/tone", tmp_path / "alone")
    monkeypatch.chdir(tmp_path)
    code = peft.replace("runs/experiment/adapters/tone", "alone")
    assert code != peft and not re.search(r"import airpfed|from airpfed", code)
    space: dict[str, Any] = {}
    exec(compile(code, "serve.md", "exec"), space)
    run = ap.load_run(desk / "runs/experiment")
    task = ap.Experiment(run.settings).tasks[1]
    texts = [sample.prompt.removesuffix("\nLabel:") for sample in task.test]
    answers = [space["predict"](text) for text in texts]
    assert answers == run.predict(texts, "tone")
    right = [name == task.names[sample.label] for name, sample in zip(answers, task.test, strict=True)]
    assert sum(right) / len(right) == pytest.approx(run.summary.tasks["tone"].final)


def test_the_test_split_of_a_run_is_written_as_on_the_page(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (text for language, text in blocks_of("serve") if language == "python" and "quickstart" in text)
    run = desk / "runs/experiment"
    monkeypatch.chdir(tmp_path)
    exec(block.replace("runs/quickstart", str(run)).replace('"trec"', '"tone"'), {})
    rows = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    assert len(rows) == 80 and {row["label"] for row in rows} == {0, 1}
