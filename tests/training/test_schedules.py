"""Schedules of the learning rate: torch's schedulers, round by round, in a run and in a run that goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.experiment import run
from airpfed.training.loop import play_round
from airpfed.training.schedules import SCHEDULES
from airpfed.training.state import ServerStep
from support.experiments import experiment

pytestmark = pytest.mark.usefixtures("shared_bases")

LR, ROUNDS = 0.3, 12


def torchs(make: Callable[[SGD], LRScheduler], warmup: int = 0) -> list[float]:
    """The learning rates of torch's scheduler in as many steps as rounds, after a linear warm-up."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    if warmup:
        rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        scheduler = SequentialLR(optimizer, [rise, scheduler], milestones=[warmup])
    rates = []
    for _ in range(ROUNDS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("constant", {}, lambda o: ConstantLR(o, factor=1.0)),
        ("linear", {}, lambda o: LinearLR(o, 1.0, 1e-30, total_iters=ROUNDS)),
        ("linear", {"start_factor": 0.5, "end_factor": 0.1, "total_iters": 5}, lambda o: LinearLR(o, 0.5, 0.1, 5)),
        ("cosine", {}, lambda o: CosineAnnealingLR(o, T_max=ROUNDS)),
        ("cosine", {"T_max": 8, "eta_min": 0.02}, lambda o: CosineAnnealingLR(o, T_max=8, eta_min=0.02)),
    ],
)
def test_a_schedule_is_torchs(name: str, options: dict[str, float], make: Callable, warmup: int) -> None:
    if warmup and name == "linear" and options:
        pytest.skip("torch's SequentialLR restores lr, not lr start_factor, between the two")
    length = {"linear": "total_iters", "cosine": "T_max"}.get(name)
    if warmup and length and length not in options:
        options = {**options, length: ROUNDS}  # torch's is made for that many, whatever the warm-up
    ours = [SCHEDULES.bind(name, {**options, "warmup": warmup})(LR, t, ROUNDS) for t in range(1, ROUNDS + 1)]
    last = warmup + int(options.get("T_max", ROUNDS))  # torch's cosine rises again, ours holds its end
    assert ours[:last] == pytest.approx(torchs(make, warmup)[:last], rel=1e-9)
    if name == "cosine" and last < ROUNDS:
        assert ours[last:] == [pytest.approx(0.02)] * (ROUNDS - last)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_fall_ends_with_the_run(name: str) -> None:
    """Without a length of its own it would be 0 in the round after the last, warm-up included."""
    rates = [SCHEDULES.bind(name, {"warmup": 3})(LR, t, ROUNDS) for t in range(1, ROUNDS + 2)]
    assert rates[:4] == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR])
    assert rates[-1] == pytest.approx(0, abs=1e-15) and min(rates[:-1]) > 0
    assert rates[3:] == sorted(rates[3:], reverse=True)
    short = [SCHEDULES.bind(name, {"warmup": 5})(LR, t, 4) for t in range(1, 5)]
    assert short == pytest.approx([LR * t / 6 for t in range(1, 5)]), "a run that ends within the warm-up"


def test_without_a_schedule_nothing_changes() -> None:
    step = ServerStep("adam", 2e-3, rounds=7)
    assert not step.has_schedule and step.of_round(5) is step
    assert ServerStep("adam", 2e-3, {}, "constant", {"warmup": 2}, 7).of_round(2).step_size == pytest.approx(
        2e-3 * 2 / 3
    )


@pytest.mark.parametrize("rate", [float("nan"), -1e-3, float("inf"), "1e-3", None, True])
def test_a_schedule_gives_a_rate(rate: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES.data, "mine", lambda lr, t, rounds: rate)
    with pytest.raises(UserError, match=r'^server.schedule = "mine": gives .* in round 3; should be a finite number'):
        ServerStep("sgd", 0.1, {}, "mine", {}, 9).of_round(3)


RUN = ["server.rounds=3", "server.schedule=linear(warmup=1)", "server.lr=0.04", "run.eval_every=0"]


def tensors(out: Path) -> bytes:
    (file,) = (out / "checkpoint").glob("*.safetensors")
    return file.read_bytes()


def test_a_run_follows_its_schedule_and_a_resumed_one_too(small_settings: Path, tmp_path: Path) -> None:
    """The rates are in the records. Another number of rounds would be another schedule, and is refused."""
    assert run.run_file(small_settings, RUN, tmp_path / "whole", False, "x") == 0
    records = run_files.load_records(tmp_path / "whole" / "records.jsonl")
    assert [record.lr for record in records] == pytest.approx([0.02, 0.04, 0.02])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "play", stopped_after(1))
        run.run_file(small_settings, RUN, tmp_path / "broken", False, "x")
    with pytest.raises(UserError, match=r"cannot be resumed with server.rounds = 4 \(was 3\)"):
        run.run_file(small_settings, ["server.rounds=4", *RUN[1:]], tmp_path / "broken", True, "x")
    assert run.run_file(small_settings, RUN, tmp_path / "broken", True, "x") == 0
    assert tensors(tmp_path / "broken") == tensors(tmp_path / "whole")


def stopped_after(rounds: int) -> Callable:
    """`play` that stops after some rounds, as at Ctrl-C."""
    play = run.play

    def stopping(experiment, out, resume, on_round, should_stop, log):
        done: list[int] = []
        return play(experiment, out, resume, lambda r: (done.append(1), on_round(r)), lambda: len(done) >= rounds, log)

    return stopping


def test_the_rate_of_a_round_is_that_of_its_update(small_settings: Path) -> None:
    exact = ("radio.scheme=error_free", "server.optimizer=sgd", "server.lr=1.0", "server.rounds=4")
    steps = {}
    for schedule in ("constant", "constant(warmup=3)"):
        made = experiment(small_settings, *exact, f"server.schedule={schedule}")
        state, record = play_round(made, made.initial)
        steps[schedule] = state.server.shared.value - made.initial.server.shared.value
        assert record.lr == (None if schedule == "constant" else pytest.approx(0.25))
    torch.testing.assert_close(steps["constant(warmup=3)"], steps["constant"] / 4, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("server.schedule=cosine", 'is one rate for all rounds and needs schedule = "constant", not "cosine"'),
        ("devices.max_grad_norm=1", 'should be 0 with server.lr = "theory"'),
    ],
)
def test_the_theorys_rate_takes_neither_schedule_nor_clipping(
    override: str, message: str, small_settings: Path
) -> None:
    with pytest.raises(UserError, match=message):
        experiment(small_settings, "server.optimizer=sgd", "server.lr=theory", override)


@pytest.mark.parametrize(
    ("override", "plain"),
    [
        ("server.optimizer=sgd", True),
        ("server.optimizer=sgd(momentum=0.9)", False),
        ("server.optimizer=adamw", False),
        ("server.schedule=cosine", False),
        ("devices.max_grad_norm=1", False),
    ],
)
def test_bounds_of_plain_sgd_are_claimed_for_no_other_update(override: str, plain: bool, small_settings: Path) -> None:
    made = experiment(small_settings, "server.optimizer=sgd", "server.lr=0.1", "theory.meter_every=1", override)
    assert made.monitor.plain is plain
