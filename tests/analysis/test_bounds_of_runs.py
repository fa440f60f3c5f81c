"""The upper bounds: one worker with all data, and servers that see every device's factors."""

from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.experiment import build, run
from airpfed.model.layers import StackedLoRA
from airpfed.model.layout import Factors
from airpfed.training import round as training_round
from airpfed.training.evaluate import model_of
from airpfed.training.loop import play_round
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import State, vectors
from support.experiments import experiment_of

pytestmark = pytest.mark.usefixtures("shared_bases")

UNEVEN = ("tasks.*.sizes=lognormal", "tasks.*.sizes_sigma=0.8", "tasks.*.samples_per_device=8")
LOCAL = ("devices.local_steps=3", "devices.local_lr=2.0")
FEW = "adapters.layers=last-3"
"""Adapters near the output alone: less to compute."""


def experiment(file: Path, method: str, *overrides: str, tasks: int = 2) -> TrainingSetup:
    settings = settings_file.read_settings(file, ["radio.scheme=error_free", f"adapters.method={method}", *overrides])
    settings = settings.model_copy(update={"tasks": settings.tasks[:tasks]})
    return experiment_of(settings)


def samples(made: TrainingSetup) -> Tensor:
    return torch.tensor([float(len(shard)) for shard in made.clients.shards]).double()


@pytest.mark.parametrize("method", ["centralised", "fedex", "flora"])
def test_no_design_of_the_air_carries_them(method: str, llama_settings: Path) -> None:
    with pytest.raises(UserError) as caught:
        settings_file.read_settings(llama_settings, [f"adapters.method={method}"])
    assert str(caught.value).count("\n") == 0
    assert f'adapters.method = "{method}": needs radio.scheme = "error_free"' in str(caught.value)


def test_centralised_is_one_device_with_the_pooled_data(llama_settings: Path) -> None:
    """Bit for bit, with a batch for every device it stands for; and nothing is sent."""
    central = experiment(llama_settings, "centralised", tasks=1)
    settings = settings_file.read_settings(
        llama_settings, ["radio.scheme=error_free", "adapters.method=fedit", "devices.batch_size=6"]
    )
    settings = settings.model_copy(update={"tasks": settings.tasks[:1]})
    (task,) = build.load_tasks(settings)
    alone = experiment_of(settings, (replace(task, train=(sum(task.train, ()),)),))
    assert [len(shard) for shard in central.clients.shards] == [20] and central.clients.batch_multiplier == (2,)
    a, b = central.initial, alone.initial
    for _ in range(3):
        (a, row), (b, _) = play_round(central, a), play_round(alone, b)
        assert not any(row.ledger.model_dump().values()) and row.pi is None and row.mse.s is None
    assert torch.equal(a.server.shared.value, b.server.shared.value)
    assert not torch.equal(a.server.shared.value, central.initial.server.shared.value)


def test_centralised_follows_the_mean_over_all_samples(llama_settings: Path) -> None:
    """Whole data a step: tasks of unlike size weigh as their samples do, which is also what fedit's weights give."""
    whole = ("devices.batch_size=1000", "server.optimizer=sgd", *UNEVEN)
    central, fedit = (experiment(llama_settings, method, *whole) for method in ("centralised", "fedit"))
    a, b = (play_round(made, made.initial)[0].server.shared.value for made in (central, fedit))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    plan, _ = training_round.draw_batches(fedit.clients, fedit.initial.devices.cursors, 1000, 1)
    found, _ = training_round.gradients(fedit.clients, vectors(fedit.initial), plan, 1.0, 5)
    plain = fedit.initial.server.shared.value - fedit.server_step.step_size * found["global"].mean(0)
    assert not torch.allclose(a, plain, rtol=1e-5, atol=1e-7), "a plain mean over devices is another"


def test_one_worker_has_no_local_steps(llama_settings: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*devices.local_steps = 3: should be 1 with adapters.method"):
        experiment(llama_settings, "centralised", *LOCAL)


def weight(made: TrainingSetup, factors: Factors, site: str) -> Tensor:
    """W0 + what was added + c B A of one model, in float64."""
    layer = made.clients.backbone.layers[site]
    assert isinstance(layer, StackedLoRA)
    change = layer.scale * factors[f"{site}.B"][0].double() @ factors[f"{site}.A"][0].double()
    return layer.base.weight.double() + factors[f"{site}.W"].double() + change


def after_local_steps(made: TrainingSetup, state: State) -> list[State]:
    """What each device holds before it sends: its own end as if it were the server's state."""
    plan, _ = training_round.draw_batches(
        made.clients, state.devices.cursors, made.local_training.batch_size, made.local_training.steps
    )
    found, _ = training_round.gradients(
        made.clients, vectors(state), plan, made.local_training.lr, made.devices_per_pass, (0, 10**9)
    )
    ways = made.local_training.steps * made.local_training.lr * found["global"]
    shared = state.server.shared
    return [
        replace(state, server=replace(state.server, shared=replace(shared, value=shared.value - way[None])))
        for way in ways
    ]


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_the_effective_weight_is_the_mean_of_the_devices(method: str, llama_settings: Path) -> None:
    """To rounding, three rounds on end; the mean of the factors alone is off by a thousand times that."""
    made = experiment(llama_settings, method, *LOCAL, *UNEVEN, FEW)
    share = samples(made) / samples(made).sum()
    state = made.initial
    for _ in range(3):
        ends = [model_of(made.clients, vectors(one), 0, 0) for one in after_local_steps(made, state)]
        after, _ = play_round(made, state)
        found = model_of(made.clients, vectors(after), 0, 0)
        for site in made.clients.backbone.target_layers:
            wanted = sum(w * weight(made, end, site) for w, end in zip(share, ends, strict=True))
            moved = (wanted - weight(made, model_of(made.clients, vectors(state), 0, 0), site)).abs().max()
            assert (weight(made, found, site) - wanted).abs().max() < 1e-5 * moved + 1e-8
        state = after
    without = {key: 0 * t if key.endswith(".W") else t for key, t in found.items()}
    assert (weight(made, without, site) - wanted).abs().max() > 1e-3 * moved
    if method == "flora":
        (a_first, a_last), (b_first, b_last) = made.clients.layout.groups("global")
        assert not state.server.shared.value[:, b_first:b_last].any(), "B starts at 0 again"
        fresh, before = (s.server.shared.value[:, a_first:a_last] for s in (state, made.initial))
        assert not torch.equal(fresh, before) and fresh.abs().mean() > 0.01


def test_one_local_step_of_fedex_moves_the_factors_as_fedit_does(llama_settings: Path) -> None:
    rate = ("devices.local_lr=0.5", "server.lr=0.5", "server.optimizer=sgd")
    one, two = (experiment(llama_settings, method, *rate) for method in ("fedex", "fedit"))
    a, b = (play_round(made, made.initial)[0].server.shared.value for made in (one, two))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_every_devices_factors_are_charged(method: str, bert_settings: Path) -> None:
    """All factors and the head of its task up, a device each; the factors of all and a head a task down."""
    made = experiment(bert_settings, method)
    _, row = play_round(made, made.initial)
    d, lengths = made.clients.layout.size("global"), made.clients.layout.task_lengths
    assert row.ledger.channel_uses == sum(ceil((d + lengths[int(n)]) / 2) for n in made.clients.task_of)
    assert row.ledger.downlink_bits == 32 * (5 * d + sum(lengths))
    assert row.pi is None and row.ledger.joules_mean == row.ledger.side_bits == 0


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_heads_are_means_over_their_task(method: str, bert_settings: Path) -> None:
    made = experiment(bert_settings, method, *UNEVEN, "devices.local_lr=0.5")
    after, _ = play_round(made, made.initial)
    plan, _ = training_round.draw_batches(made.clients, made.initial.devices.cursors, made.local_training.batch_size, 1)
    found, _ = training_round.gradients(made.clients, vectors(made.initial), plan, 0.5, 5)
    for n, head in enumerate(after.server.personal.value):
        share = samples(made) * (made.clients.task_of == n)
        mean = (share / share.sum()) @ found["task"].double()
        torch.testing.assert_close(head, made.initial.server.personal.value[n] - 0.5 * mean.float())


def test_a_device_without_a_finite_gradient_is_in_no_mean(
    llama_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment(llama_settings, "fedex", *LOCAL)
    real = training_round.gradients

    def spoiled(*args: object) -> tuple[dict[str, Tensor], Tensor]:
        found, loss = real(*args)
        found["global"][1, 0] = torch.nan
        return found, loss

    monkeypatch.setattr(training_round, "gradients", spoiled)
    state, row = play_round(made, made.initial)
    assert row.absent == [1] and state.server.shared.value.isfinite().all() and state.server.added.isfinite().all()
    d = made.clients.layout.size("global")
    assert row.ledger.channel_uses == 4 * ceil(d / 2)


def test_a_run_leaves_merged_weights_and_says_why_no_adapters(
    bert_settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    rounds = [
        "adapters.method=fedex",
        "radio.scheme=error_free",
        "server.rounds=2",
        "devices.local_lr=30.0",
        *LOCAL[:1],
        FEW,
    ]
    assert run.run_file(bert_settings, rounds, out, False, "x") == 0
    assert (
        "no adapters: fedex changes the frozen weights by more than a LoRA adapter of rank 4 can hold"
        in capsys.readouterr().out
    )
    assert not (out / "adapters").exists() and (out / "report.html").is_file()
    with pytest.raises(UserError, match="export RUN_DIR --merged"):
        run.export_run(out, merged=False)
    assert run.export_run(out, merged=True) == [out / "merged" / name for name in ("colours", "moods")]
    tensors = [load_file(out / "merged" / name / "model.safetensors") for name in ("colours", "moods")]
    assert [one["classifier.weight"].shape[0] for one in tensors] == [2, 3]
    _, made, state = run.reopen_run(out)
    site = sorted(made.clients.backbone.target_layers)[0]
    for n, one in enumerate(tensors):
        wanted = weight(made, model_of(made.clients, vectors(state), n, 0), site)
        torch.testing.assert_close(one[f"{site}.weight"].double(), wanted, rtol=0, atol=1e-6)
    assert state.server.added.abs().max() > 1e-4, "more than the tolerance"


def test_flora_keeps_a_global_head(bert_settings: Path) -> None:
    """Fresh adapters every round, but the head for all is the mean of the devices'."""
    made = experiment(bert_settings, "flora", "adapters.head=global", *UNEVEN, FEW, "devices.local_lr=0.5")
    after, _ = play_round(made, made.initial)
    plan, _ = training_round.draw_batches(made.clients, made.initial.devices.cursors, made.local_training.batch_size, 1)
    found, _ = training_round.gradients(made.clients, vectors(made.initial), plan, 0.5, 5)
    first, last = made.clients.layout.groups("global")[2]
    mean = (samples(made) / samples(made).sum()) @ found["global"][:, first:last].double()
    wanted = made.initial.server.shared.value[0, first:last] - 0.5 * mean.float()
    torch.testing.assert_close(after.server.shared.value[0, first:last], wanted)
