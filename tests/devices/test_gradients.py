"""Stacked gradients: equal to one device at a time, to finite differences, and unmoved by who is computed together."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from airpfed.core import memory
from airpfed.devices.clients import Clients, draw_batches, draw_samples
from airpfed.devices.gradients import gradients, sample_losses, stacked_losses, zero_gradients
from airpfed.model.layout import KINDS, Vectors, gather
from airpfed.model.methods import SCOPES, blocks_of
from airpfed.model.tokens import IGNORED
from airpfed.training.loop import play_round
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors
from support import experiments
from support.experiments import in_double, random_vectors
from support.single_device import OneDevice, one_device

UNEQUAL = ("tasks.*.sizes=lognormal", "tasks.*.sizes_sigma=1.0", "tasks.*.samples_per_device=5")
WORDS = ("tasks.moods.kind=generate", "tasks.moods.label=text", "tasks.moods.labels={}")
BATCH = 4

CASES = {
    "llama, airpfed": ("llama", "airpfed", ()),
    "llama with a task of completions, feddpa": ("llama", "feddpa", WORDS),
    "llama with a prefix, fedsa": ("llama", "fedsa", ("adapters.layers=last-4", *WORDS)),
    "llama with adapters here and there, ffa": ("llama", "ffa", ("adapters.layers=[3, 11]",)),
    "bert, airpfed": ("bert", "airpfed", ()),
    "bert with a prefix, per_task_fedit": ("bert", "per_task_fedit", ("adapters.layers=last-4",)),
}


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    return experiments.experiment(file, f"devices.batch_size={BATCH}", *overrides)


def own_rows(values: Vectors, clients: Clients, device: int) -> dict[str, Tensor]:
    row = {"global": 0, "frozen": 0, "task": int(clients.task_of[device]), "device": device}
    return {scope: values[scope][row[scope]] for scope in SCOPES}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm()) if wanted.numel() else float(found.numel())


def picked(clients: Clients, device: int, rows: Sequence[int]) -> list:
    return [clients.shards[device][i] for i in rows]


@pytest.mark.parametrize("case", CASES)
def test_stacked_gradients_are_each_devices_own(case: str, request: pytest.FixtureRequest) -> None:
    """Float32 tells 1e-7; 12 layers leave 1e-5 with room. A fault of order, weight or padding is 1e-2 and more."""
    kind, method, overrides = CASES[case]
    file, folder = request.getfixturevalue(f"{kind}_settings"), request.getfixturevalue(f"tiny_{kind}")
    made = experiment(file, f"adapters.method={method}", *UNEQUAL, *overrides)
    clients, values = made.clients, random_vectors(made)
    sizes = [len(shard) for shard in clients.shards]
    assert min(sizes) < BATCH < max(sizes), "a shard smaller than the batch is part of the test"
    assert bool(clients.backbone.prefix) == any("layers" in override for override in overrides)
    plan, _ = draw_batches(clients, torch.zeros(len(sizes), dtype=torch.long), BATCH, 1)
    alone = one_device(folder, clients, blocks_of(method, 2, 2))
    wanted = [
        alone.gradient(
            alone.cut(own_rows(values, clients, k)),
            picked(clients, k, plan[k][0]),
            clients.classes[int(clients.task_of[k])],
        )
        for k in range(len(sizes))
    ]
    rows = [alone.paste(gradient) for _, gradient in wanted]
    for chunk in (1, 2, 100):
        found, loss = gradients(clients, values, plan, 1.0, chunk)
        torch.testing.assert_close(loss, torch.stack([one for one, _ in wanted]), rtol=1e-5, atol=0)
        for scope in SCOPES:
            assert found[scope].shape == (len(sizes), clients.layout.size(scope))
            for k, row in enumerate(rows):
                assert relative(found[scope][k], row[scope]) < 1e-5, (chunk, scope, k)


@pytest.mark.parametrize(("method", "mu"), [("airpfed", 0.0), ("feddpa", 0.0), ("ffa", 0.0), ("feddpa", 0.7)])
def test_local_steps_send_the_mean_slope_of_the_way_walked(
    method: str, mu: float, llama_settings: Path, tiny_llama: Path
) -> None:
    """(W_start - W_end) / (E local_lr) of a plain loop; what is frozen stays where it is on the way.

    mu: of FedProx, whose term pulls every step after the first back to the start.
    """
    made = experiment(llama_settings, f"adapters.method={method}", *UNEQUAL)
    clients, values, rate, steps = made.clients, random_vectors(made), 0.5, 3
    plan, _ = draw_batches(clients, torch.tensor([0, 3, 1, 2, 0]), BATCH, steps)
    alone = one_device(tiny_llama, clients, blocks_of(method, 2, 2))
    found, loss = gradients(clients, values, plan, rate, 3, proximal_mu=mu)
    free, _ = gradients(clients, values, plan, rate, 3)
    at_start, _ = gradients(clients, values, [one[:1] for one in plan], rate, 3)
    scopes = [scope for scope in SCOPES if scope != "frozen"]
    for k in range(len(plan)):
        rows = own_rows(values, clients, k)
        end, first = walked(alone, rows, [picked(clients, k, rows) for rows in plan[k]], rate, mu)
        torch.testing.assert_close(loss[k], first, rtol=1e-5, atol=0)
        for scope in scopes:
            way = (rows[scope] - end[scope]) / (steps * rate)
            assert relative(found[scope][k], way) < 1e-4, (scope, k)  # the difference of near values costs a digit
            assert not way.numel() or relative(at_start[scope][k], way) > 1e-2, "the steps are long enough to tell"
            assert not way.numel() or (relative(free[scope][k], way) > 1e-2) == (mu > 0), "mu is large enough to tell"


def walked(
    alone: OneDevice, rows: dict[str, Tensor], steps: list, rate: float, mu: float = 0.0
) -> tuple[dict[str, Tensor], Tensor]:
    """Where plain gradient descent on the loss + mu/2 ||W - W_start||^2 ends, and the loss it starts from."""
    start = {key: tensor.detach() for key, tensor in alone.cut(rows).items()}
    now, losses = alone.cut(rows), []
    frozen = {key for scope, key, _ in alone.order() if scope == "frozen"}
    for samples in steps:
        loss, gradient = alone.gradient(now, samples, 0)
        losses.append(loss)
        now = {
            key: (
                tensor.detach()
                - (0.0 if key in frozen else rate) * (gradient[key] + mu * (tensor.detach() - start[key]))
            ).requires_grad_()
            for key, tensor in now.items()
        }
    return {scope: row.detach() for scope, row in alone.paste(now).items()}, losses[0]


class Slope:
    """A device's loss along lines through its flattened vector, and the gradient of it that airpfed gives."""

    def __init__(self, made: TrainingSetup, device: int) -> None:
        in_double(made.clients)
        self.clients, self.device = made.clients, device
        self.at = {scope: value.double() for scope, value in random_vectors(made).items()}
        self.plan, _ = draw_batches(made.clients, torch.zeros(len(made.clients.shards), dtype=torch.long), BATCH, 1)
        found, _ = gradients(made.clients, self.at, self.plan, 1.0, 2)
        self.gradient = {scope: rows[device] for scope, rows in found.items()}

    def loss(self, values: Vectors) -> float:
        task = self.clients.task_of[self.device].reshape(1)
        factors = gather(values, self.clients.layout, task, torch.tensor([self.device]))
        with torch.no_grad():
            return float(stacked_losses(self.clients, factors, [self.device], [self.plan[self.device][0]]).mean())

    def along(self, way: dict[str, Tensor], step: float = 1e-3) -> float:
        """Five-point finite difference along `way`, error of order step^4."""

        def moved(times: float) -> float:
            values = {scope: value.clone() for scope, value in self.at.items()}
            row = {"global": 0, "frozen": 0, "task": int(self.clients.task_of[self.device]), "device": self.device}
            for scope, change in way.items():
                values[scope][row[scope]] += times * step * change
            return self.loss(values)

        return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)

    def said(self, way: dict[str, Tensor], gradient: dict[str, Tensor] | None = None) -> float:
        return float(sum((change * (gradient or self.gradient)[scope]).sum() for scope, change in way.items()))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_gradients_agree_with_finite_differences(kind: str, request: pytest.FixtureRequest) -> None:
    made = experiment(request.getfixturevalue(f"{kind}_settings"))
    slope = Slope(made, device=3)
    rng = torch.Generator().manual_seed(5)
    for scopes in (("global", "task"), ("global",), ("task",)):
        way = {s: torch.randn(len(slope.gradient[s]), generator=rng, dtype=torch.float64) for s in scopes}
        measured = slope.along(way, 1e-3 / len(slope.gradient["global"]) ** 0.5)
        assert measured == pytest.approx(slope.said(way), rel=1e-6)
        assert measured != pytest.approx(slope.said(way, layers_by_number(made.clients, slope.gradient)), rel=1e-2)


def number_of(layer: str) -> int | None:
    return next((int(part) for part in layer.split(".") if part.isdigit()), None)


def layers_by_number(clients: Clients, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fault that two layers would hide: tensors laid down by layer number, read in sorted order."""
    wrong = {}
    for scope, row in gradient.items():
        entries = [e for e in clients.layout.entries if e.scope == scope]
        by_number = sorted(entries, key=lambda e: (KINDS.index(e.kind), e.block, number_of(e.layer) or 0, e.layer))
        wrong[scope] = torch.cat([row[e.start : e.stop] for e in by_number]) if entries else row
    return wrong


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_single_coordinates_agree_with_finite_differences(kind: str, request: pytest.FixtureRequest) -> None:
    """The largest entry of A and of B of each block in one module of layers 2 and 10, and of the head."""
    made = experiment(request.getfixturevalue(f"{kind}_settings"))
    slope = Slope(made, device=1)
    chosen = {(e.kind, e.block, number_of(e.layer)): e for e in made.clients.layout.entries}
    picked = [entry for (_, _, number), entry in chosen.items() if number in (None, 2, 10)]
    assert len(picked) == (8 if kind == "llama" else 9)
    for entry in picked:
        row = slope.gradient[entry.scope]
        index = entry.start + int(row[entry.start : entry.stop].abs().argmax())
        way = {entry.scope: torch.zeros_like(row)}
        way[entry.scope][index] = 1.0
        assert slope.along(way) == pytest.approx(float(row[index]), rel=1e-6), entry


def test_entries_of_classes_a_task_does_not_have_get_no_gradient(bert_settings: Path) -> None:
    made = experiment(bert_settings)
    plan, _ = draw_batches(made.clients, torch.zeros(5, dtype=torch.long), BATCH, 2)
    found, _ = gradients(made.clients, random_vectors(made), plan, 0.1, 5)
    two, three = made.clients.layout.task_lengths
    assert three - two == 17
    assert (found["task"][:2, two:] == 0).all() and (found["task"][2:, two:] != 0).any()


def test_every_epoch_shows_each_sample_once_in_an_order_of_its_own(llama_settings: Path) -> None:
    clients = experiment(llama_settings).clients
    size = len(clients.shards[2])
    epochs = [draw_samples(clients, 2, epoch * size, size) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert draw_samples(clients, 2, 3, 7) == (epochs[0] + epochs[1])[3:10], "a draw depends on the cursor alone"
    assert draw_samples(clients, 3, 0, size) != epochs[0]


def test_batches_follow_each_other_and_small_shards_give_small_ones(llama_settings: Path) -> None:
    clients = experiment(llama_settings, *UNEQUAL).clients
    counts = torch.tensor([len(shard) for shard in clients.shards]).clamp(max=BATCH)
    before = torch.tensor([0, 1, 5, 9, 30])
    plan, after = draw_batches(clients, before, BATCH, 3)
    assert torch.equal(after, before + 3 * counts)
    for k, steps in enumerate(plan):
        assert [len(rows) for rows in steps] == [int(counts[k])] * 3
        assert [i for rows in steps for i in rows] == draw_samples(clients, k, int(before[k]), 3 * int(counts[k]))


def test_gradients_in_a_file_are_those_in_memory(llama_settings: Path) -> None:
    """One round through model and air: where gradients lie changes nothing, bit for bit."""
    made = [experiment(llama_settings, f"devices.gradients_gb={room}") for room in (1.0, 0.0)]
    states, rows = zip(*(play_round(one, one.initial) for one in made), strict=True)
    assert not memory.is_spilled(zero_gradients(made[0].clients)["task"]) and memory.is_spilled(
        zero_gradients(made[1].clients)["task"]
    )
    for a, b in zip(vectors(states[0]).values(), vectors(states[1]).values(), strict=True):
        assert torch.equal(a, b)
    assert rows[0].mse == rows[1].mse and rows[0].loss == rows[1].loss


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_bfloat16_passes_leave_gradients_a_percent_off(kind: str, request: pytest.FixtureRequest) -> None:
    """Matrices of 8 significant bits: a relative error of 2^-12 to 2^-4 of each device's gradient, and not none."""
    file = request.getfixturevalue(f"{kind}_settings")
    exact, rounded = (experiment(file, f"devices.precision={name}") for name in ("float32", "bfloat16"))
    values = random_vectors(exact)
    plan, _ = draw_batches(exact.clients, exact.initial.devices.cursors, BATCH, 1)
    (wanted, loss), (found, near) = (gradients(made.clients, values, plan, 0.0, 8) for made in (exact, rounded))
    assert ((near - loss).abs() < 0.05 * loss).all()
    for scope in ("global", "task"):
        assert found[scope].dtype == torch.float32
        off = (found[scope] - wanted[scope]).norm(dim=1) / wanted[scope].norm(dim=1)
        assert (off > 2**-12).all() and (off < 2**-4).all()


@pytest.mark.parametrize("ignored", [0, 2])
def test_losses_over_a_large_vocabulary_and_their_slopes_are_those_of_float64(ignored: int) -> None:
    rng = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(8, 3, 50_000, generator=rng)
    targets = torch.randint(0, 50_000, (8, 3), generator=rng)
    targets[:, :ignored] = IGNORED

    def slope(at: torch.Tensor, losses: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        at = at.clone().requires_grad_()
        found = losses(at, targets)
        return found.detach().double(), torch.autograd.grad(found.sum(), at)[0].double()

    def plain(at: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        each = cross_entropy(at.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
        return each.reshape(wanted.shape).sum(1) / (3 - ignored)

    for found, wanted in zip(slope(scores, sample_losses), slope(scores.double(), plain), strict=True):
        assert (found - wanted).norm() <= 5e-7 * wanted.norm()
