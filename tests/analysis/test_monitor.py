"""The meter: what it says of a round, that it moves nothing, what it costs, and when it does not speak."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.air.schedule import Updates
from airpfed.air.uplink import Aggregate
from airpfed.analysis.monitor import channel_statistics, direction_of, stack_of
from airpfed.core import run_files
from airpfed.core.run_files import Probe, Theory
from airpfed.devices import full_gradients as full_data
from airpfed.devices import hessian
from airpfed.devices.full_gradients import full_gradients
from airpfed.devices.gradients import gradients
from airpfed.theory import bounds
from airpfed.theory.constants import batch_variance
from airpfed.theory.inner_product import squared_norm, weighted_average
from airpfed.training.checkpoint import tensors_of
from airpfed.training.loop import Outcome, play, play_round
from airpfed.training.setup import RoundTrace, TrainingSetup
from airpfed.training.state import State, vectors
from support.metered import DRAWS, METERED, experiment
from support.settings import make_settings

pytestmark = pytest.mark.usefixtures("shared_bases")


def ran(made: TrainingSetup, out: Path, resume: bool = False, until: int = 99) -> Outcome:
    out.mkdir(exist_ok=True)
    rows: list[int] = []
    return play(made, out, resume, lambda row: rows.append(row.round), lambda: len(rows) >= until, lambda _: None)


def rows(out: Path) -> list[dict]:
    return [row.model_dump(exclude={"seconds"}) for row in run_files.load_records(out / "records.jsonl")]


def same(a: State, b: State) -> bool:
    x, y = tensors_of(a), tensors_of(b)
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """On a base of few layers the factors move so far in two rounds that the probe's constants do not hold."""
    return make_settings(tmp_path_factory.mktemp("settings"), tiny_llama)


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """Two rounds at the rule's step, both metered."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return ran(experiment(file, *METERED), out), out


def theory_of(out: Path) -> dict[int, Theory]:
    return {row.round: row.theory for row in run_files.load_records(out / "records.jsonl") if row.theory}


def test_rounds_are_metered_and_the_probe_set_the_step(whole: tuple[Outcome, Path]) -> None:
    probe, found = run_files.load_probe(whole[1] / "theory.json"), theory_of(whole[1])
    assert probe is not None and sorted(found) == [1, 2]
    assert all(row.eta == probe.eta == bounds.step_size(probe.constants) for row in found.values())
    assert [point.rounds for point in probe.points] == [0, 1, 2] and probe.unbiased and probe.used >= 2
    covered = probe.points[: probe.used]
    assert probe.constants.beta >= probe.safety * max(max(p.beta, p.secant) for p in covered)
    for point in covered:
        assert point.sgd <= probe.constants.c * point.power + probe.constants.sigma_sgd2
        assert point.power <= probe.constants.lam * point.gradient + probe.constants.sigma_dif2
        assert point.power <= probe.constants.lam_printed * point.gradient_printed + probe.constants.sigma_dif2_printed
    assert probe.eta * 2 <= covered[-1].time * (1 + 1e-9), "the run goes no farther than the pilot went"


def test_38_and_41_hold_and_their_terms_are_those_of_the_round(whole: tuple[Outcome, Path]) -> None:
    for row in theory_of(whole[1]).values():
        assert row.change <= row.bounds.descent == pytest.approx(row.e1 + row.e2 + row.e3 + row.e4)
        assert row.bounds.one_round is not None and row.change_mean <= row.bounds.one_round
        assert row.bounds.one_round_ours is not None and row.change_mean <= row.bounds.one_round_ours
        assert row.bounds.one_round_ours <= row.bounds.one_round <= (row.bounds.one_round_printed or 0) + 1e-12
        assert row.curvature <= row.constants.beta and row.draws == DRAWS
        assert row.channel_measured == pytest.approx(row.channel, rel=0.2)
        assert row.gain == pytest.approx(1, abs=0.1)
        assert not {"A1", "A2", "A3", "unbiased", "step", "claim"} & set(row.failed), row.failed


def test_a_metered_run_resumes_to_the_same_rows(whole: tuple[Outcome, Path], file: Path, tmp_path: Path) -> None:
    """Interrupted after a round; its own probe, of the same numbers, sets the step."""
    out = tmp_path / "broken"
    ran(experiment(file, *METERED), out, until=1)
    last = ran(experiment(file, *METERED), out, resume=True)
    assert same(last.state, whole[0].state) and rows(out) == rows(whole[1])
    seen, kept = (run_files.load_probe(folder / "theory.json") for folder in (out, whole[1]))
    assert seen is not None and kept is not None
    assert seen.model_dump(exclude={"seconds"}) == kept.model_dump(exclude={"seconds"})


def test_the_meter_moves_no_bit(whole: tuple[Outcome, Path], file: Path, tmp_path: Path) -> None:
    """The same step as a number and no meter: the same bits and records, no probe, no file of it."""
    probe = run_files.load_probe(whole[1] / "theory.json")
    assert probe is not None
    made = experiment(file, f"server.lr={probe.eta!r}")
    assert made.monitor is None
    plain = ran(made, tmp_path / "plain")
    assert same(plain.state, whole[0].state) and not (tmp_path / "plain" / "theory.json").exists()
    assert rows(tmp_path / "plain") == [{**row, "theory": None} for row in rows(whole[1])]


def probe_of(whole: tuple[Outcome, Path], **changes: float) -> Probe:
    found = run_files.load_probe(whole[1] / "theory.json")
    assert found is not None
    return found.model_copy(update={"constants": found.constants.model_copy(update=changes)})


@pytest.fixture(scope="module")
def played(whole: tuple[Outcome, Path], file: Path) -> tuple[TrainingSetup, RoundTrace]:
    """One round from the run's last state, metered by hand."""
    made, state = experiment(file, *METERED), whole[0].state
    seen: list[RoundTrace] = []

    class Spy:
        def is_due(self, t: int) -> bool:
            return True

        def check_round(self, probe: Probe, initial: State, trace: RoundTrace, eta: float) -> None:
            seen.append(trace)

    play_round(replace(made, monitor=Spy()), state, probe_of(whole))
    return made, seen[0]


def test_changes_of_f_are_those_of_all_losses(
    whole: tuple[Outcome, Path], played: tuple[TrainingSetup, RoundTrace]
) -> None:
    """F before and after from one device's full batch at a time; the slope by differences along the step."""
    made, one = played
    assert made.monitor is not None
    row = made.monitor.check_round(probe_of(whole), made.initial, one, probe_of(whole).eta)
    every = [[list(range(len(shard)))] for shard in made.clients.shards]
    weights = made.monitor.weights

    def f(state: State, part: float = 1.0) -> float:
        begin, end = vectors(one.previous), vectors(state)
        at = {scope: begin[scope] + part * (end[scope] - begin[scope]) for scope in begin}
        _, loss = gradients(made.clients, at, every, 1.0, 5)  # type: ignore[arg-type]
        return float(weights.device @ loss.double())

    assert row.loss == pytest.approx(f(one.previous), rel=1e-6)
    assert row.change == pytest.approx(f(one.next_state) - f(one.previous), abs=2e-6)
    slope = (f(one.next_state, 1.0) - f(one.next_state, -1.0)) / 2
    assert row.e1 + row.e2 == pytest.approx(slope, rel=0.05)
    moved = direction_of(vectors(one.next_state)) - direction_of(vectors(one.previous))
    assert row.e3 + row.e4 == pytest.approx(row.constants.beta / 2 * squared_norm(weights, moved))


def test_a_metered_round_passes_over_the_data_once_with_and_twice_without_gradients(
    whole: tuple[Outcome, Path], played: tuple[TrainingSetup, RoundTrace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples computed, padding aside: D with gradients, D after the step, D dealt over the draws; no Hessian."""
    made, one = played
    counts = {True: 0, False: 0}
    real = full_data.row_losses

    def counted(clients, factors, devices, rows):  # type: ignore[no-untyped-def]
        counts[torch.is_grad_enabled()] += sum(len(row) for row in rows)
        return real(clients, factors, devices, rows)

    monkeypatch.setattr(full_data, "row_losses", counted)
    monkeypatch.setattr(hessian, "row_losses", None)
    assert made.monitor is not None
    made.monitor.check_round(probe_of(whole), made.initial, one, 0.1)
    samples = sum(len(shard) for shard in made.clients.shards)
    assert counts == {True: samples, False: 2 * samples}


WRONG = {
    "beta": 1e-6, "c": 0.0, "sigma_sgd2": 1e-9, "lam": 1.0, "sigma_dif2": 0.0, "lam_printed": 1.0,
    "sigma_dif2_printed": 0.0,
}  # fmt: skip


def test_assumptions_that_fail_are_named(whole: tuple[Outcome, Path], played: tuple[TrainingSetup, RoundTrace]) -> None:
    made, one = played
    assert made.monitor is not None
    probe = probe_of(whole, **WRONG).model_copy(update={"reach": 0.0})
    row = made.monitor.check_round(probe, made.initial, farther(one, 40.0), probe_of(whole).eta)
    assert {"A1", "A2", "A3", "A3 printed", "region"} <= set(row.failed)
    steep = made.monitor.check_round(probe_of(whole, beta=1e6), made.initial, one, probe_of(whole).eta)
    assert "step" in steep.failed


def farther(one: RoundTrace, times: float) -> RoundTrace:
    """The round with a longer step, far enough to meet curvature."""
    begin, end = one.previous.server, one.next_state.server
    moved = [
        replace(e, value=b.value + times * (e.value - b.value))
        for b, e in ((begin.shared, end.shared), (begin.personal, end.personal))
    ]
    return replace(one, next_state=replace(one.next_state, server=replace(end, shared=moved[0], personal=moved[1])))


def test_a_design_that_shrinks_has_its_own_bound(
    whole: tuple[Outcome, Path], played: tuple[TrainingSetup, RoundTrace], file: Path
) -> None:
    """At -10 dB mmse shrinks: gain and deviation say by how much, over the draws; uniform forcing keeps 1 and 0."""
    _, one = played
    biased = experiment(file, *METERED, "radio.design=mmse", "radio.snr_db=-10")
    fair = experiment(file, *METERED, "radio.design=uniform_forcing", "radio.snr_db=-10")
    assert (
        biased.monitor is not None
        and fair.monitor is not None
        and not biased.monitor.unbiased
        and fair.monitor.unbiased
    )
    shrunk, kept = channel_statistics(biased.monitor, one, 0.1), channel_statistics(fair.monitor, one, 0.1)
    assert 0.05 < shrunk.gain < 0.95 and shrunk.deviation > 0
    assert abs(kept.gain - 1) < 0.3 and abs(kept.gain - 1) < 1 - shrunk.gain
    assert float(shrunk.measured.mean()) < float(kept.measured.mean())
    probe = probe_of(whole, gain=shrunk.gain, deviation=1.01 * shrunk.deviation)
    row = biased.monitor.check_round(probe.model_copy(update={"unbiased": False}), biased.initial, one, 0.1)
    assert row.bounds.one_round_ours is not None and row.change_mean <= row.bounds.one_round_ours
    assert "bias" not in row.failed
    honest = biased.monitor.check_round(probe_of(whole), biased.initial, one, 0.1)
    assert "unbiased" in honest.failed, "a design that claims to be unbiased and is not"


@pytest.mark.parametrize(
    "overrides",
    [("server.optimizer=adam", "server.lr=0.01"), ("server.lr=0.1", "devices.local_steps=2"),
     ("server.lr=0.1", "adapters.method=feddpa")],
    ids=["adam", "local steps", "feddpa"],
)  # fmt: skip
def test_38_holds_for_any_update_and_41_speaks_of_sgd_only(
    overrides: tuple[str, ...], file: Path, tmp_path: Path
) -> None:
    short = ("theory.meter_every=1", "server.rounds=1", "theory.lanczos_steps=2")
    made = experiment(file, *short, "theory.pilot_rounds=0", "radio.design=channel_inversion", *overrides)
    ran(made, tmp_path / "run")
    found = theory_of(tmp_path / "run")
    assert sorted(found) == [1]
    for row in found.values():
        assert row.change <= row.bounds.descent
        assert (row.bounds.one_round is None) == ("adapters.method=feddpa" not in overrides)


def test_an_absent_device_silences_41_but_not_38(
    whole: tuple[Outcome, Path], played: tuple[TrainingSetup, RoundTrace]
) -> None:
    made, one = played
    gone = {scope: rows.clone() for scope, rows in one.gradients.items()}
    gone["global"][3] = float("nan")
    present = torch.tensor([True, True, True, False, True])
    assert made.monitor is not None
    row = made.monitor.check_round(probe_of(whole), made.initial, replace(one, gradients=gone, present=present), 0.1)
    assert row.bounds.one_round is None and row.bounds.one_round_ours is None
    assert row.change <= row.bounds.descent


def test_a_deviation_is_not_lost_in_a_gain_that_fades(played: tuple[TrainingSetup, RoundTrace]) -> None:
    """r of a twentieth of G, orthogonal to it, gains that vary by 0.3, noise: the mean of rho^2 over probes is true."""
    made, one = played
    assert made.monitor is not None
    wanted, rng = weighted_average(made.monitor.weights, stack_of(one.gradients)), torch.Generator().manual_seed(0)
    near, whole = wanted.shared, squared_norm(made.monitor.weights, wanted)
    off = torch.randn(len(near), generator=rng, dtype=torch.float64)
    off -= (off @ near) / (near @ near) * near
    off *= 0.05 * whole**0.5 / off.norm()
    like = made.monitor.draws(
        1,
        Updates(one.gradients["global"], one.gradients["task"], one.present),
        made.initial.server.correlation_statistics,
    )

    def draws(*_: object) -> list[Aggregate]:
        gains = 0.8 + 0.3 * torch.randn(20, generator=rng, dtype=torch.float64)
        noise = 0.3 * (whole / len(near)) ** 0.5 * torch.randn(20, len(near), generator=rng, dtype=torch.float64)
        return [
            replace(like[0], shared=(gain * near + off + own).float(), personal=(gain * wanted.personal).float())
            for gain, own in zip(gains, noise, strict=True)
        ]

    monitor = replace(made.monitor, draws=draws)
    found = torch.tensor([channel_statistics(monitor, one, 1.0).deviation for _ in range(40)]) ** 2
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - 0.05**2) <= 5 * error
    assert 5 * error < 0.5 * 0.05**2


def test_a_draw_takes_the_step_of_the_round(played: tuple[TrainingSetup, RoundTrace]) -> None:
    """Over the error-free uplink the servers would go -eta G, whatever step size the settings give."""
    made, trace = played
    assert made.monitor is not None
    monitor = replace(made.monitor, draws=lambda *round_: [made.monitor.exact(*round_)])
    statistics = channel_statistics(monitor, trace, 0.25)
    gradient = weighted_average(monitor.weights, stack_of(trace.gradients))
    step = direction_of(vectors(statistics.states[0])) - direction_of(vectors(trace.previous))
    torch.testing.assert_close(step.shared, -0.25 * gradient.shared, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(step.personal, -0.25 * gradient.personal, rtol=1e-3, atol=1e-7)
    assert statistics.gain == pytest.approx(1, abs=1e-5) and statistics.deviation < 1e-3


def test_the_noise_of_a_mini_batch_is_that_of_the_workers_own(file: Path) -> None:
    """A worker of `centralised` takes as many samples at once as all its devices together."""
    made = experiment(file, *METERED, "radio.scheme=error_free", "adapters.method=centralised")
    clients, values = made.clients, vectors(made.initial)
    assert clients.batch_multiplier and min(clients.batch_multiplier) > 1
    whole, alone = (full_gradients(one, values, 1, 4).sgd for one in (clients, replace(clients, batch_multiplier=())))
    for k, shard in enumerate(clients.shards):
        factor = batch_variance(clients.batch_multiplier[k], len(shard))[1] / batch_variance(1, len(shard))[1]
        assert float(whole[k]) == pytest.approx(factor * float(alone[k]), rel=1e-9)
