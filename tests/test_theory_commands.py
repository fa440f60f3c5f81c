"""`airpfed plan` and `airpfed bound` from outside: a plan, the run it was made for, and the two compared."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from airpfed import cli
from airpfed.air.schedule import Updates, schedule
from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.planning import planner, predict
from airpfed.theory import predictions
from airpfed.theory.verification import error_energy
from airpfed.training.loop import play_round
from support import checks
from support.experiments import experiment_of
from support.settings import make_settings
from support.uplinks import everyone, gradients, make_air

pytestmark = pytest.mark.usefixtures("shared_bases")

Command = Callable[..., tuple[int, str, str]]

THEORY = """
[theory]
meter_every = 2
pilot_rounds = 0
beta = 5.0
"""


@pytest.fixture
def airpfed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The entry point in this process: exit code, stdout, stderr."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["airpfed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        return stopped.value.code if isinstance(stopped.value.code, int) else 0, shown.out, shown.err

    return command


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    path = make_settings(tmp_path_factory.mktemp("settings"), tiny_llama)
    text = (
        path.read_text()
        .replace("lr = 0.02", 'optimizer = "sgd"\nlr = "theory"')
        .replace("eval_every = 2", "eval_every = 0")
    )
    text = text.replace("batch_size = 3", "batch_size = 2")
    text = text.replace("coherence_symbols = 100", "coherence_symbols = 5000").replace("[[tasks]]", "[[tasks]]", 1)
    path.write_text(text.replace("rank_shared = 2", 'rank_shared = 2\nlayers = "last-2"') + THEORY)
    return path


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from airpfed.experiment.run import run_file

    out = tmp_path_factory.mktemp("runs") / "run"
    assert run_file(file, [], out, False, "airpfed run") == 0
    return out


@pytest.fixture(scope="module")
def plan(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four candidates: two powers by snr, two splits."""
    out = tmp_path_factory.mktemp("plans") / "plan.json"
    made = planner.make_plan(file, [], ["radio.snr_db=10,-10"], ["2:2", "1:3"], 0.1, 8)
    planner.save_plan(made, out)
    return out


def one_line(done: tuple[int, str, str], *words: str) -> None:
    assert done[0] == 2 and len(done[2].strip().splitlines()) == 1, done[2]
    assert all(word in done[2] for word in words) and "Traceback" not in done[2]


def test_a_metered_run_leaves_its_probe_and_figures(run: Path) -> None:
    assert {"theory.json", "report.html", "records.jsonl"} <= {path.name for path in run.iterdir()}
    page = (run / "report.html").read_text()
    assert all(f'id="figure-theory-{name}"' in page for name in ("decrease", "shares", "average"))
    rows = run_files.load_records(run / "records.jsonl")
    assert [row.round for row in rows if row.theory] == [2, 4] and "theory" in rows[1].seconds
    assert "theory" in run_files.load_summary(run / "summary.json").seconds


def test_bound_prints_the_promised_keys_and_no_violation(airpfed: Command, run: Path) -> None:
    code, out, _ = airpfed("bound", run, "--json")
    tree = json.loads(out)
    assert code == 0 and set(tree) == {
        "rounds", "descent_violations", "bound_violations", "slack_median", "psi", "shares", "constants", "loss_start",
        "loss_end",
    }  # fmt: skip
    assert (tree["rounds"], tree["descent_violations"], tree["bound_violations"]) == (2, 0, 0)
    assert tree["loss_end"] < tree["loss_start"] and tree["slack_median"] > 0 and tree["constants"]["beta"] == 5.0
    code, out, _ = airpfed("bound", run)
    assert code == 0 and "(38) violated in 0 of 2" in out and "(41) violated in 0" in out


def test_wrong_directories_and_plans_are_one_line(airpfed: Command, run: Path, file: Path, tmp_path: Path) -> None:
    one_line(airpfed("bound", tmp_path), "not a run's directory")
    (tmp_path / "experiment.toml").write_text("")
    one_line(airpfed("bound", tmp_path), "theory.json", "theory.meter_every")
    one_line(airpfed("bound", run, "--plan", tmp_path / "none.json"), "none.json", "airpfed plan")
    (tmp_path / "bad.json").write_text("{}")
    one_line(airpfed("bound", run, "--plan", tmp_path / "bad.json"), "bad.json", "not a plan")
    one_line(airpfed("plan", file, "--split", "3:3"), "--split 3:3", "R = 4")
    one_line(airpfed("plan", file, "--split", "two"), "--split two", "R_S:R_P")
    one_line(airpfed("plan", file, "--grid", "model.max_tokens=8,9"), "--grid model.max_tokens", "radio settings")
    one_line(airpfed("plan", file, "--grid", "radio.antenas=8"), "did you mean 'antennas'?")
    one_line(airpfed("plan", file, "--limit", "0"), "--limit 0")
    one_line(airpfed("plan", file, "--draws", "0"), "--draws 0")
    one_line(airpfed("run", file, "--set", "server.optimizer=adam"), 'lr = "theory"', "sgd")


def test_a_plan_says_what_the_run_then_did(airpfed: Command, run: Path, plan: Path) -> None:
    """Same seed, same drop: energies of the channel within 30 % with so few samples, air time and joules closely."""
    tree = json.loads(plan.read_text())
    assert len(tree["candidates"]) == 4 and tree["rounds"] == 4 and tree["memory_gb"] > 0
    said = next(
        c for c in tree["candidates"] if c["set"]["radio.snr_db"] == 10 and c["set"]["adapters.rank_shared"] == 2
    )
    probe = run_files.load_probe(run / "theory.json")
    assert probe is not None and said["eta"] == probe.eta
    rows = run_files.load_records(run / "records.jsonl")
    measured = sum(error_energy(row.mse, probe.tasks, "claimed") for row in rows) / len(rows)
    assert said["channel"] == pytest.approx(measured, rel=0.3)
    assert said["air_seconds"] == pytest.approx(sum(row.ledger.air_seconds for row in rows), rel=0.02)
    assert said["downlink_seconds"] == pytest.approx(sum(row.ledger.downlink_seconds for row in rows), rel=1e-9)
    assert said["total_seconds"] == pytest.approx(sum(row.ledger.total_seconds for row in rows), rel=0.1)
    later = [row.ledger.joules_mean for row in rows[1:]]  # A has no gradient in the first round and is not sent
    assert said["joules"] / len(rows) == pytest.approx(sum(later) / len(later), rel=0.05)
    code, out, _ = airpfed("bound", run, "--plan", plan)
    assert code == 0 and "plan: channel share" in out and "plan: Psi_T" in out


def test_the_cheapest_candidate_keeps_the_limit(plan: Path) -> None:
    tree = json.loads(plan.read_text())
    shares = [one["shares"]["channel"] for one in tree["candidates"]]
    quiet, loud = (
        [s for s, one in zip(shares, tree["candidates"], strict=True) if one["set"]["radio.snr_db"] == snr]
        for snr in (10, -10)
    )
    assert max(quiet) < min(loud), "less power over noise, a larger share"
    within = [one for one, share in zip(tree["candidates"], shares, strict=True) if share <= tree["limit"]]
    best = None if tree["cheapest"] is None else tree["candidates"][tree["cheapest"]]
    assert (best is None) == (not within)
    assert best is None or best["joules"] == min(one["joules"] for one in within)
    assert len({one["psi"] for one in tree["candidates"]}) == 4


@pytest.mark.parametrize("head", ["task", "global", "frozen", "device"])
def test_a_plan_counts_the_head_where_the_run_sends_it(head: str, tmp_path: Path, tiny_bert: Path) -> None:
    overrides = [
        "server.optimizer=sgd", "server.rounds=2", "theory.pilot_rounds=0", "theory.beta=5", f"adapters.head={head}",
    ]  # fmt: skip
    file = make_settings(tmp_path, tiny_bert, causal=False)
    said = planner.make_plan(file, overrides, ["radio.snr_db=10"], ["2:2"], 0.5, 2).candidates[0]
    settings = settings_file.read_settings(file, [*overrides, "radio.snr_db=10"])
    made = experiment_of(settings)
    state, _ = play_round(made, made.initial)  # A has no gradient in the first round and is not sent
    assert said.channel_uses == 2 * play_round(made, state)[1].ledger.channel_uses


def test_receivers_that_know_less_are_never_planned_to_hear_better(file: Path) -> None:
    """At -10 dB, devices' gradients alike: what receivers believe changes the design, not the symbols."""
    v = {
        belief: planner.make_plan(
            file, ["radio.design=mmse", f"radio.correlation={belief}"], ["radio.snr_db=-10"], ["2:2"], 0.5, 20
        )
        for belief in ("none", "estimated")
    }
    none, estimated = (one.candidates[0].channel for one in v.values())
    assert estimated < none


def test_a_plan_says_nothing_of_psi_where_nothing_is_proved(file: Path) -> None:
    """Adam; several local steps; a step above the rule's has ours alone."""

    def stated(*overrides: str) -> tuple[bool, bool]:
        one = planner.make_plan(file, overrides, ["radio.snr_db=10"], ["2:2"], 0.5, 2).candidates[0]
        return one.psi is not None, one.psi_ours is not None

    rule = planner.make_plan(file, [], ["radio.snr_db=10"], ["2:2"], 0.5, 2).probe.eta
    assert stated(f"server.lr={0.9 * rule}") == (True, True)
    assert stated(f"server.lr={1.1 * rule}") == (False, True)
    assert stated("devices.local_steps=2", f"server.lr={0.9 * rule}") == (False, False)
    assert stated("server.optimizer=adam", "server.lr=0.01") == (False, False)


def test_a_plan_ends_with_the_budget_as_a_run_does(file: Path) -> None:
    """Budgets of 2.5 rounds and of half a round: two rounds and the first one, of four."""

    def planned(*overrides: str) -> predict.Candidate:
        return planner.make_plan(file, overrides, ["radio.snr_db=10"], ["2:2"], 0.5, 2).candidates[0]

    whole = planned()
    for key, budget in (("air_seconds", "air_seconds"), ("total_seconds", "seconds")):
        a_round = getattr(whole, key) / 4
        for rounds, share in ((2, 2.5), (1, 0.5)):
            one = planned(f"server.{budget}={share * a_round}")
            assert getattr(one, key) == pytest.approx(rounds * a_round) and one.channel == whole.channel


def test_a_plan_of_two_hops_counts_each_edge_s_sum(file: Path) -> None:
    one, other = (
        planner.make_plan(file, [f"radio.topology={name}"], ["radio.snr_db=10"], ["2:2"], 0.5, 8).candidates[0]
        for name in ("two_hop", "joint")
    )
    assert 0.2 < one.channel / other.channel < 50
    link = make_air(topology="two_hop")
    shared, personal = gradients(link)
    slot, *_ = schedule(link, Updates(shared, personal, everyone(link)), ((0,), (1,)))
    variance = {"global": [((0, 41), 2 * torch.ones(5).double())], "task": [((0, 41), torch.ones(5).double())]}
    assert predict.stream_variance(slot, variance, 0, 41).tolist() == [2.0] * 5


def test_a_plan_does_not_guess_the_peaks_of_gradients(file: Path) -> None:
    with pytest.raises(UserError, match=r'^.*radio.mixing = "none": a plan knows the largest OFDM symbols of Gaussian'):
        planner.make_plan(file, ["radio.mixing=none"], ["radio.snr_db=10"], ["2:2"], 0.5, 2)


def test_entries_of_a_narrow_head_are_as_large_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energies are divided by each device's own entries, not by those of the widest head."""
    checks.disarm("airpfed.planning.predict", "entry_variance")
    kinds = {"global": {"A": (0, 10)}, "task": {"A": (0, 4), "head": (4, 24)}}
    order: Any = SimpleNamespace(kinds=kinds.__getitem__, task_lengths=(24, 9))
    energy = {"global.A": [20.0, 30.0], "task.A": [8.0, 4.0], "task.head": [40.0, 5.0]}
    probe: Any = SimpleNamespace(points=[SimpleNamespace(energy=energy)], used=1)
    monkeypatch.setattr(predictions, "mean_over_time", lambda points, row: row[0])
    found = predict.entry_variance(order, order, probe, torch.tensor([0, 1]))
    assert [variance.tolist() for _, variance in found["task"]] == [[2.0, 1.0], [2.0, 1.0]]
    assert next(variance.tolist() for _, variance in found["global"]) == [2.0, 3.0]
