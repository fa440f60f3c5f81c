"""The command line from outside: files, exit codes, one-line errors, Ctrl-C and resume, a full disk."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from airpfed import cli
from airpfed.config import experiment_files
from airpfed.core import run_files
from airpfed.training import setup
from support.commands import stopping_after
from support.settings import make_settings, write_rows

pytestmark = pytest.mark.usefixtures("shared_bases")

ROUNDS = 8
"""Enough of them that an interrupt after the first finds the run going on."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def airpfed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The entry point in this process."""

    def command(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["airpfed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        code = stopped.value.code
        return Done(code if isinstance(code, int) else 0, shown.out, shown.err)

    return command


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Path:
    path = make_settings(tmp_path_factory.mktemp("settings"), small_llama)
    path.write_text(path.read_text().replace("rounds = 4", f"rounds = {ROUNDS}").replace("every = 2", "every = 4"))
    return path


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, through the same function as the command."""
    from airpfed.experiment.run import run_file

    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run_file(file, [], out, False, f"airpfed run {file} --out {out}") == 0
    return out


def adapter_files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted((run / "adapters").rglob("*.safetensors"))}


def one_line(done: Done, *words: str) -> None:
    """Exit code 2, one line on stderr with these words, no traceback."""
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert "Traceback" not in done.err + done.out
    assert all(word in done.err for word in words), done.err


def test_a_run_leaves_what_the_contract_says(finished):
    files = {path.name for path in finished.iterdir()}
    assert files == {
        "experiment.toml", "environment.json", "layout.json", "records.jsonl", "summary.json", "adapters", "checkpoint",
        "report.html",
    }  # fmt: skip
    assert {path.suffix for path in (finished / "checkpoint").iterdir()} == {".safetensors", ".json"}
    assert set(adapter_files(finished)) == {
        f"adapters/{task}/adapter_model.safetensors" for task in ("colours", "moods")
    }


def test_a_record_has_the_promised_keys(finished):
    rows = [json.loads(line) for line in (finished / "records.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    keys = {"round", "loss", "accuracy", "mse", "pi", "ledger", "seconds"}
    parts = {"claimed", "measured", "claimed_genie", "bias", "variance"}
    for row in rows:
        assert (
            set(row) == keys | {"pi_claimed", "correlation", "absent", "late", "lr", "clipped", "theory"}
            and row["theory"] is None
        )
        assert set(row["loss"]) == set(row["mse"]["p"]) == {"colours", "moods"}
        assert set(row["seconds"]) == {"gradients", "air", "evaluate"}
        for error in (row["mse"]["s"], *row["mse"]["p"].values()):
            assert set(error) == parts | {"silence", "scale"}
    assert [row["round"] for row in rows if row["accuracy"]] == [4, 8]


def test_the_summary_has_the_promised_keys(finished):
    summary = json.loads((finished / "summary.json").read_text())
    promised = {"method", "rounds", "tasks", "average", "pi_mean", "ledger", "seconds", "exit"}
    assert set(summary) == promised | {"average_base"}
    assert (summary["method"], summary["rounds"], summary["exit"]) == ("airpfed", ROUNDS, "completed")
    assert set(summary["tasks"]) == {"colours", "moods"}
    for task in summary["tasks"].values():
        keys = {"metric", "base", "final", "samples", "base_balanced", "final_balanced", "dev", "others"}
        assert set(task) == keys | {"larger_is_better", "base_metrics", "final_metrics"}
        assert task["samples"] == 12
    assert summary["average"] == pytest.approx(sum(task["final"] for task in summary["tasks"].values()) / 2)


def test_the_summary_adds_up_the_records(finished):
    summary, rows = (
        run_files.load_summary(finished / "summary.json"),
        run_files.load_records(finished / "records.jsonl"),
    )
    assert summary.ledger.channel_uses == sum(row.ledger.channel_uses for row in rows)
    assert summary.ledger.air_seconds == pytest.approx(sum(row.ledger.air_seconds for row in rows))
    assert summary.pi_mean == pytest.approx(sum(row.pi for row in rows) / ROUNDS)


def test_the_environment_names_versions_seeds_and_hashes(finished):
    environment = json.loads((finished / "environment.json").read_text())
    assert {"packages", "commit", "seed", "data_sha256", "base_sha256", "command"} <= set(environment)
    assert set(environment["data_sha256"]) == {"colours", "moods"}
    assert all(len(digest) == 64 for digest in environment["data_sha256"].values())


def test_a_typo_is_one_line(airpfed, file, tmp_path):
    done = airpfed("run", file, "--set", "radio.antenas=4", "--out", tmp_path / "out")
    one_line(done, str(file), "radio.antenas", "did you mean 'antennas'?")
    assert not (tmp_path / "out").exists()


def test_a_missing_settings_file_is_one_line(airpfed, tmp_path):
    one_line(airpfed("run", tmp_path / "none.toml"), "none.toml: no such settings file")


def test_a_run_is_never_overwritten(airpfed, file, finished):
    before = (finished / "records.jsonl").read_bytes()
    one_line(airpfed("run", file, "--out", finished), str(finished), "--resume", "--out")
    assert (finished / "records.jsonl").read_bytes() == before


def test_nothing_to_resume_is_one_line(airpfed, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_line(airpfed("run", file, "--out", tmp_path / "none", "--resume"), "nothing to resume")
    one_line(airpfed("run", file, "--resume"), "nothing to resume")


def test_a_checkpoint_of_other_settings_is_refused(airpfed, file, finished, tmp_path):
    """The fingerprint guards what shaped the rounds so far; rounds and evaluation may change."""
    import shutil

    copy = shutil.copytree(finished, tmp_path / "copy")
    done = airpfed("run", file, "--set", "radio.antennas=9", "--out", copy, "--resume")
    one_line(done, "cannot be resumed with radio.antennas = 9 (was 8)")
    done = airpfed("run", file, "--set", "tasks.colours.test_samples=9", "--out", copy, "--resume")
    one_line(done, "cannot be resumed with tasks.colours.test_samples = 9 (was 12)")
    assert (copy / "experiment.toml").read_bytes() == (finished / "experiment.toml").read_bytes()


@pytest.mark.parametrize("command", ["export", "report"])
def test_a_directory_without_a_run_is_one_line(airpfed, tmp_path, command):
    one_line(airpfed(command, tmp_path), str(tmp_path), "not a run's directory")


def test_tasks_and_models_are_listed_by_name(airpfed):
    done = airpfed("tasks")
    assert done.code == 0 and done.err == ""
    assert all(name in done.out for name in ("sms", "gym:NAME", "smollm2-135m", "quickstart"))


def test_the_report_can_be_written_again(airpfed, finished):
    (finished / "report.html").unlink()
    done = airpfed("report", finished)
    assert done.code == 0 and done.out.strip() == str(finished / "report.html")
    assert (finished / "report.html").stat().st_size > 1_000_000


def test_export_writes_the_same_adapters_and_merged_weights(airpfed, finished):
    before = adapter_files(finished)
    done = airpfed("export", finished, "--merged")
    assert done.code == 0 and done.out.count("reloaded with PEFT, same logits") == 2
    assert adapter_files(finished) == before
    for task in ("colours", "moods"):
        assert not any("lora" in name for name in load_file(finished / "merged" / task / "model.safetensors"))


def test_a_run_of_a_packaged_experiment_goes_on_by_its_name(airpfed, file, tmp_path, monkeypatch):
    """From another folder the printed command still means the package's file."""
    monkeypatch.setattr(experiment_files, "FOLDER", file.parent)
    monkeypatch.chdir(tmp_path)
    rounds = "server.rounds=2"
    with stopping_after(1):
        stopped = airpfed("run", file.stem, "--set", rounds)
    assert stopped.code == 130, stopped.err
    printed = stopped.out.splitlines()[-1].split("go on with: ")[1]
    assert printed == f"airpfed run {file.stem} --set {rounds} --out runs/{file.stem} --resume"
    assert airpfed(*shlex.split(printed)[1:]).code == 0
    assert json.loads((tmp_path / "runs" / file.stem / "summary.json").read_text())["exit"] == "completed"


@pytest.mark.parametrize(
    "words",
    [("run",), ("link",), ("plan",), ("sweep",), ("federate",), ("federate", "run"),
     ("federate", "init", "site", "--settings")],
)  # fmt: skip
def test_a_wrong_name_of_an_experiment_is_one_line_in_every_command(airpfed, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_line(airpfed(*words, "quikstart"), "quikstart: no such file", "minilm", "did you mean 'quickstart'?")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_says_how_to_go_on_and_ends_the_same(airpfed, file, finished, tmp_path, monkeypatch):
    """Ctrl-C in round 2: that round is finished, and after the printed command everything is bit for bit the same."""
    out, calls, gradients = tmp_path / "cut", [], setup.local_gradients

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return gradients(*given)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "local_gradients", interrupted)
        stopped = airpfed("run", file, "--set", "run.eval_every=4", "--out", out)
    assert stopped.code == 130 and "Traceback" not in stopped.err, stopped.err
    assert json.loads((out / "summary.json").read_text())["exit"] == "interrupted"
    assert len(run_files.load_records(out / "records.jsonl")) == 2
    message, printed = stopped.out.splitlines()[-1].split("go on with: ")
    assert message.startswith("stopped after round 2;")
    program, *arguments = shlex.split(printed)
    assert (program, arguments[-1]) == ("airpfed", "--resume")
    assert airpfed(*arguments).code == 0
    assert adapter_files(out) == adapter_files(finished)
    whole, resumed = (run_files.load_records(path / "records.jsonl") for path in (finished, out))
    assert [row.model_dump(exclude={"seconds"}) for row in resumed] == [
        row.model_dump(exclude={"seconds"}) for row in whole
    ]


@pytest.fixture
def small_disk(monkeypatch):
    """A disk that is full from the n-th push on; calling it with nothing empties it."""
    original = os.fsync

    def full_after(pushes: int | None) -> None:
        left = [pushes]

        def fsync(descriptor: int) -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return full_after


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_good(airpfed, file, finished, tmp_path, small_disk):
    """A round pushes its record, its tensors and latest.json; whichever fails, resuming ends in the same adapters."""
    out = tmp_path / "full"
    small_disk(15)
    one_line(airpfed("run", file, "--out", out), "No space left on device")
    for more in (4, 5):
        small_disk(more + 4)
        one_line(airpfed("run", file, "--out", out, "--resume"), "No space left on device")
    small_disk(None)
    assert airpfed("run", file, "--out", out, "--resume").code == 0
    assert adapter_files(out) == adapter_files(finished)


@pytest.mark.parametrize(
    ("pushes", "name"), [(2, "layout.json"), (3, "records.jsonl"), (4, "safetensors"), (5, "latest.json")]
)
def test_a_full_disk_names_the_file(airpfed, file, tmp_path, small_disk, pushes, name):
    small_disk(pushes)
    one_line(airpfed("run", file, "--out", tmp_path / "full"), name)


def test_a_table_of_two_columns_and_a_short_settings_file_are_enough(airpfed, tmp_path, small_llama):
    write_rows(tmp_path / "mine.csv", 200, ("good", "bad"), 3)
    settings = f"""
[model]
base = "{small_llama}"

[[tasks]]
name = "mine"
source = "mine.csv"
prompt = "{{text}} Label :"
labels = {{ good = " good", bad = " bad" }}
devices = 3
samples_per_device = 20
dev_samples = 0
test_samples = 40

[adapters]
target_modules = ["q_proj", "v_proj"]

[server]
rounds = 2
"""
    assert len(settings.splitlines()) <= 25
    (tmp_path / "mine.toml").write_text(settings)
    done = airpfed("run", tmp_path / "mine.toml", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    summary = run_files.load_summary(tmp_path / "out" / "summary.json")
    assert summary.rounds == 2 and summary.tasks["mine"].samples == 40


def test_help_loads_nothing_heavy():
    """`airpfed --help` answers at once: every command imports what it needs when it is called."""
    heavy = ("torch", "flwr", "transformers", "pydantic", "numpy")
    code = f"import sys; from airpfed import cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_resumed_run_says_what_is_changed_and_never_goes_back(airpfed, file, finished, tmp_path):
    import shutil

    copy = shutil.copytree(finished, tmp_path / "copy")
    done = airpfed("run", file, "--set", f"server.rounds={ROUNDS - 1}", "--out", copy, "--resume")
    one_line(done, f"server.rounds = {ROUNDS - 1}: {ROUNDS} rounds are done already")
    assert (copy / "experiment.toml").read_bytes() == (finished / "experiment.toml").read_bytes()
    done = airpfed("run", file, "--set", "run.eval_every=0", "--out", copy, "--resume")
    assert done.code == 0 and "resumed with run.eval_every = 0 (was 4)" in done.out


@pytest.mark.parametrize("damage", ["gone", "cut", "twice"])
def test_records_that_do_not_fit_the_checkpoint_are_refused(airpfed, file, finished, tmp_path, damage):
    import shutil

    copy = shutil.copytree(finished, tmp_path / "copy")
    lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
    kept = {"gone": [], "cut": lines[:1], "twice": [*lines[:1], *lines]}[damage]
    (copy / "records.jsonl").write_text("".join(kept))
    done = airpfed("run", file, "--set", f"server.rounds={ROUNDS + 2}", "--out", copy, "--resume")
    one_line(done, "records.jsonl: should hold rounds 1 to", "each once")
    assert (copy / "records.jsonl").read_text() == "".join(kept)


def test_two_runs_at_once_do_not_share_a_folder(airpfed, file, tmp_path):
    from airpfed.core.files import exclusive_run

    out = tmp_path / "out"
    out.mkdir()
    with exclusive_run(out):
        one_line(airpfed("run", file, "--out", out), "another run is at work here")


@pytest.mark.parametrize("command", ["report", "plan"])
def test_out_never_overwrites_a_file_of_another_kind(airpfed, file, finished, tmp_path, command):
    own = tmp_path / "mine.csv"
    own.write_text("text,label\n")
    one_line(airpfed(command, {"report": finished, "plan": file}[command], "--out", own), "--out", "should be a file")
    one_line(
        airpfed(command, {"report": finished, "plan": file}[command], "--out", tmp_path), "--out", "should be a file"
    )
    assert own.read_text() == "text,label\n"


def test_a_model_that_diverged_answers_nothing(airpfed, tiny_bert, tmp_path):
    """Steps of 1e30: scores are no numbers, none of them is right, and the line names the setting."""
    file = make_settings(tmp_path, tiny_bert, causal=False)
    done = airpfed("run", file, "--set", "server.lr=1e30", "--set", "server.rounds=2", "--out", tmp_path / "out")
    one_last = done.err.strip().splitlines()[-1]
    assert done.code == 2 and "training has diverged; try a smaller server.lr" in one_last
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["average"] == 0
    assert not list((tmp_path / "out" / "adapters").iterdir()), "what is refused is not left behind"
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("lr", ["1e10", "1e20", "1e38"])
def test_a_run_that_diverges_can_be_reported_and_gone_on_with(airpfed, file, tmp_path, lr):
    """Whatever its numbers come to, its records can be read; a round more ends as the run itself did."""
    options = ("--set", f"server.lr={lr}", "--set", "server.optimizer=sgd", "--out", tmp_path / "out")
    first = airpfed("run", file, *options, "--set", "server.rounds=3")
    assert first.code in (0, 2) and "Traceback" not in first.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert airpfed("report", tmp_path / "out").code == 0
    again = airpfed("run", file, *options, "--set", "server.rounds=4", "--resume")
    assert again.code in (0, 2) and "Traceback" not in again.err
    assert len(run_files.load_records(tmp_path / "out" / "records.jsonl")) == 4
    done = airpfed("compare", tmp_path / "out", "--json")
    assert done.code == 0 and json.loads(done.out, parse_constant=lambda text: pytest.fail(text))
