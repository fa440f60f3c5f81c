"""Every method is a row of one table: the identities between rows, and what leaves a device."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from math import ceil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from airpfed.air.schedule import Updates
from airpfed.air.uplink import Aggregate
from airpfed.config import settings_file
from airpfed.model.layout import Vectors, gather
from airpfed.model.methods import METHODS, SCOPES
from airpfed.training import round as training_round
from airpfed.training.checkpoint import tensors_of
from airpfed.training.evaluate import model_of, score, score_task
from airpfed.training.loop import play_round
from airpfed.training.round import round_step
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import DeviceCopies, ServerState, ServerStep, State, vectors
from support.experiments import experiment_of
from support.settings import link_of

pytestmark = pytest.mark.usefixtures("shared_bases")

EXACT = ("radio.scheme=error_free", "run.eval_every=0")
FEW = "adapters.layers=last-3"
"""Adapters near the output alone: less to compute."""


def experiment(file: Path, *overrides: str, tasks: int = 2) -> TrainingSetup:
    settings = settings_file.read_settings(file, [*EXACT, *overrides])
    settings = settings.model_copy(update={"tasks": settings.tasks[:tasks]})
    return experiment_of(settings)


def played(made: TrainingSetup, rounds: int = 2) -> State:
    state = made.initial
    for _ in range(rounds):
        state, _ = play_round(made, state)
    return state


def models(made: TrainingSetup, state: State) -> dict[str, Tensor]:
    """Each device's factors."""
    return gather(vectors(state), made.clients.layout, made.clients.task_of, torch.arange(len(made.clients.shards)))


def same(one: tuple[TrainingSetup, State], two: tuple[TrainingSetup, State]) -> None:
    a, b = models(*one), models(*two)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
    assert any(tensor.abs().max() > 0.01 for key, tensor in a.items() if key.endswith(".B")), "something was learnt"


def test_one_task_without_a_personal_rank_is_fedit(llama_settings: Path) -> None:
    made = [
        experiment(llama_settings, f"adapters.method={method}", *ranks, tasks=1)
        for method, ranks in (("airpfed", ("adapters.rank_shared=4", "adapters.rank_personal=0")), ("fedit", ()))
    ]
    same(*((one, played(one)) for one in made))


def test_one_task_without_a_personal_rank_is_also_per_task_fedit(llama_settings: Path) -> None:
    """With one task D_k/D = D_k/D_n: the same sum under two names."""
    made = [experiment(llama_settings, f"adapters.method={method}", tasks=1) for method in ("fedit", "per_task_fedit")]
    same(*((one, played(one)) for one in made))


def test_no_personal_rank_is_fedit_and_no_shared_rank_is_per_task_fedit(llama_settings: Path) -> None:
    for ranks, method in (((4, 0), "fedit"), ((0, 4), "per_task_fedit")):
        split = (f"adapters.rank_shared={ranks[0]}", f"adapters.rank_personal={ranks[1]}")
        made = [experiment(llama_settings, *split), experiment(llama_settings, f"adapters.method={method}")]
        same(*((one, played(one)) for one in made))


def test_the_split_of_the_ranks_does_matter(llama_settings: Path) -> None:
    made = [experiment(llama_settings, f"adapters.method={method}") for method in ("airpfed", "fedit")]
    with pytest.raises(AssertionError):
        same(*((one, played(one)) for one in made))


COMPUTING = ("compute_seconds", "compute_joules", "total_seconds", "total_joules_mean", "total_joules_max")


def test_local_devices_send_nothing_and_learn_alone(llama_settings: Path) -> None:
    made = experiment(llama_settings, "adapters.method=local", *link_of("uniform_forcing"))
    state, row = play_round(made, made.initial)
    assert all(value == 0 for key, value in row.ledger.model_dump().items() if key not in COMPUTING)
    assert row.ledger.total_seconds == row.ledger.compute_seconds > 0, "but they compute"
    assert row.pi is None and row.mse.s is None and row.mse.p == {}
    assert state.server.shared.value.numel() == state.server.personal.value.numel() == 0
    assert len({tuple(value.tolist()) for value in state.devices.own.value}) == 5, "five devices, five models"


SENT = {  # method -> entries of A and B that travel over the s-slot and the p-slot, in ranks of 4
    "airpfed": ((2, 2), (2, 2)),
    "fedit": ((4, 4), (0, 0)),
    "per_task_fedit": ((0, 0), (4, 4)),
    "feddpa": ((2, 2), (0, 0)),
    "ffa": ((0, 4), (0, 0)),
    "fedsa": ((4, 0), (0, 0)),
    "local": ((0, 0), (0, 0)),
    "rolora": ((4, 4), (0, 0)),  # B in odd rounds, A in even ones
}
AIR = tuple(SENT)
"""The methods of the air; the others are in test_bounds.py."""


def test_every_method_has_a_test() -> None:
    assert set(METHODS) == {*AIR, *(name for name, row in METHODS.items() if row.error_free)}


def listening(made: TrainingSetup, heard: list[tuple[Tensor, Tensor]]) -> Callable[..., Aggregate]:
    """The link, with an ear on it."""

    def aggregate(t: int, updates: Updates, correlation_statistics: Tensor) -> Aggregate:
        heard.append((updates.shared, updates.personal))
        return made.aggregate(t, updates, correlation_statistics)

    return aggregate


@pytest.mark.parametrize("method", AIR)
def test_only_what_the_table_says_leaves_a_device(method: str, llama_settings: Path) -> None:
    made, heard = experiment(llama_settings, f"adapters.method={method}"), []
    state = played(replace(made, aggregate=listening(made, heard)), 2)
    outs = sum(out for out, _ in made.clients.backbone.target_layers.values())
    widths = sum(width for _, width in made.clients.backbone.target_layers.values())
    for slot, (a, b) in enumerate(SENT[method]):
        assert {rows[slot].shape for rows in heard} == {(5, a * widths + b * outs)}
    (s_a, s_b), (p_a, p_b) = SENT[method]
    assert state.server.shared.value.shape == (1, s_a * widths + s_b * outs)
    assert state.server.personal.value.shape == (2, p_a * widths + p_b * outs)
    rest = 4 * (outs + widths) - sum(a * widths + b * outs for a, b in SENT[method])
    assert state.devices.own.value.shape[1] + state.frozen.shape[1] == rest
    assert torch.equal(state.frozen, made.initial.frozen)


@pytest.mark.parametrize("method", AIR)
def test_the_ledger_charges_what_is_sent_and_only_that(method: str, llama_settings: Path) -> None:
    """Two entries a channel use, a normaliser group each; one s-slot, a p-slot a task; 32 bits down an entry."""
    made = experiment(llama_settings, f"adapters.method={method}")
    outs = sum(out for out, _ in made.clients.backbone.target_layers.values())
    widths = sum(width for _, width in made.clients.backbone.target_layers.values())
    state = made.initial
    for t in (1, 2):
        state, row = play_round(made, state)
        (s_a, s_b), (p_a, p_b) = SENT[method]
        if method == "rolora":
            s_a, s_b = (0, 4) if t == 1 else (4, 0)
        entries = [s_a * widths, s_b * outs, *[p_a * widths, p_b * outs] * 2]
        assert row.ledger.channel_uses == sum(ceil(count / 2) for count in entries)
        assert row.ledger.downlink_bits == 32 * sum(entries)


def test_ffa_averages_products_exactly_and_fedit_does_not(llama_settings: Path) -> None:
    """With B_k after local steps: (mean of B_k) A is the mean of B_k A, but not where A_k differ too."""
    local = ("devices.local_steps=3", "devices.local_lr=2.0", "server.optimizer=sgd", "server.lr=6.0")
    gaps = {}
    for method in ("ffa", "fedit"):
        made = experiment(llama_settings, f"adapters.method={method}", *local, FEW)
        state, _ = play_round(made, made.initial)
        plan, _ = training_round.draw_batches(
            made.clients, state.devices.cursors, made.local_training.batch_size, made.local_training.steps
        )
        found, _ = training_round.gradients(
            made.clients, vectors(state), plan, made.local_training.lr, made.devices_per_pass, None
        )
        device = {s: rows.repeat(5 // len(rows), 1) for s, rows in vectors(state).items() if s in ("global", "frozen")}
        ends = {"global": device["global"] - 6.0 * found["global"], "frozen": device["frozen"]}
        samples = torch.tensor([float(len(shard)) for shard in made.clients.shards]).double()
        after, _ = play_round(made, state)
        mean = products(made, ends, samples / samples.sum())
        server = {"global": after.server.shared.value, "frozen": after.frozen}
        gaps[method] = float((products(made, server, torch.ones(1).double()) - mean).abs().max() / mean.abs().max())
    assert gaps["ffa"] < 1e-5 and gaps["fedit"] > 1e-3, gaps


def products(made: TrainingSetup, rows: Vectors, weights: Tensor) -> Tensor:
    """The weighted sum of B_k A_k in every layer, flat."""
    one = torch.zeros(1).long()
    models = [gather({s: v[[k]] for s, v in rows.items()}, made.clients.layout, one, one) for k in range(len(weights))]

    def mean(site: str) -> Tensor:
        each = [model[f"{site}.B"][0].double() @ model[f"{site}.A"][0].double() for model in models]
        return sum(w * product for w, product in zip(weights, each, strict=True)).flatten()

    return torch.cat([mean(site) for site in sorted(made.clients.backbone.target_layers)])


@pytest.mark.parametrize("design", ["error_free", "uniform_forcing"])
def test_rolora_moves_b_and_a_in_turn(design: str, llama_settings: Path) -> None:
    """What rests stays bit for bit, with its moments and its count; also with local steps."""
    made = experiment(llama_settings, "adapters.method=rolora", "devices.local_steps=2", *link_of(design), FEW)
    turns = made.clients.layout.phases()
    assert turns[0][0] == turns[1][1] and turns[1][0] == 0 and turns[0][1] == made.initial.server.shared.value.shape[1]
    state = made.initial
    for t in range(4):
        after, _ = play_round(made, state)
        before, now = state.server.shared, after.server.shared
        for turn, (first, last) in enumerate(turns):
            old, new = tensors_of(before), tensors_of(now)
            for key in ("value", "first", "second"):
                rested = torch.equal(old[key][:, first:last], new[key][:, first:last])
                assert rested == (turn != t % 2), (t, key)
        state = after
    assert state.server.shared.updates.tolist() == [[2, 2]]


def test_the_first_round_of_rolora_is_ffas_and_the_second_is_fedits_for_a(llama_settings: Path) -> None:
    """Local steps: A rests on the devices too. One step: A's gradient is taken at the B of the first round."""
    local = ("devices.local_steps=3", "devices.local_lr=0.5")
    one, two = (experiment(llama_settings, f"adapters.method={m}", *local, FEW) for m in ("rolora", "ffa"))
    (first, last), rest = one.clients.layout.phases()
    a, b = (play_round(made, made.initial)[0].server.shared.value for made in (one, two))
    assert torch.equal(a[:, first:last], b)
    one, fedit = (
        experiment(llama_settings, f"adapters.method={m}", "server.optimizer=sgd") for m in ("rolora", "fedit")
    )
    state = play_round(one, one.initial)[0]
    shared = replace(fedit.initial.server.shared, value=state.server.shared.value)
    whole = replace(state, server=replace(state.server, shared=shared))
    a, b = (play_round(made, at)[0].server.shared.value for made, at in ((one, state), (fedit, whole)))
    assert torch.equal(a[:, rest[0] : rest[1]], b[:, rest[0] : rest[1]])
    assert not torch.equal(a, b)


def test_rolora_keeps_what_was_heard_of_each_turns_symbols_apart(bert_settings: Path) -> None:
    """A head travels in every round; the memory of B's round is not touched in A's."""
    made = experiment(bert_settings, "adapters.method=rolora", *link_of("mmse"), "adapters.target_modules=['query']")
    correlation_statistics = [made.initial.server.correlation_statistics]
    state = made.initial
    for _ in range(2):
        state, row = play_round(made, state)
        correlation_statistics.append(state.server.correlation_statistics)
        assert row.mse.s is not None and set(row.mse.p) == {"colours", "moods"}
    changed = [(old != new).any(1).tolist() for old, new in pairwise(correlation_statistics)]
    assert changed == [[True, True, False, False], [False, False, True, True]], "B or A, and the head"


def test_local_steps_of_a_method_in_turn_need_the_turn(llama_settings: Path) -> None:
    made = experiment(llama_settings, "adapters.method=rolora")
    plan, _ = training_round.draw_batches(made.clients, made.initial.devices.cursors, 2, 2)
    with pytest.raises(ValueError, match="need the active columns"):
        training_round.gradients(made.clients, vectors(made.initial), plan, 0.1, 5)


def test_local_steps_move_the_active_columns_of_each_phase(llama_settings: Path) -> None:
    """B in odd rounds, A in even ones: gradients after a step along the other columns would differ."""
    made = experiment(llama_settings, "adapters.method=rolora", "devices.local_steps=2", "devices.local_lr=2.0", FEW)
    _, _, cursors = training_round.local_gradients(made.clients, made.initial, made.local_training, 5)
    assert cursors.tolist() == [2 * min(made.local_training.batch_size, len(shard)) for shard in made.clients.shards]
    state = play_round(made, made.initial)[0]
    phases = made.clients.layout.phases()
    for number, begin in ((0, made.initial), (1, state)):
        rows, _, _ = training_round.local_gradients(made.clients, begin, made.local_training, 5)
        plan, _ = training_round.draw_batches(made.clients, begin.devices.cursors, made.local_training.batch_size, 2)
        right, wrong = (
            training_round.gradients(made.clients, vectors(begin), plan, 2.0, 5, phases[n])[0]["global"]
            for n in (number, 1 - number)
        )
        assert torch.equal(rows["global"], right) and not torch.allclose(right, wrong)


def test_the_servers_type_has_no_field_for_what_never_leaves_a_device() -> None:
    names = ["shared", "personal", "correlation_statistics", "added", "copies"]
    assert [field.name for field in fields(ServerState)] == names
    assert [field.name for field in fields(DeviceCopies)] == ["shared", "personal"]


@pytest.mark.parametrize("method", ["feddpa", "fedsa", "local"])
def test_what_never_leaves_a_device_moves_nothing_at_the_server(method: str, llama_settings: Path) -> None:
    """Other gradients of the personal part, the rest alike: the server ends in the same bits, the devices do not."""
    made = experiment(llama_settings, f"adapters.method={method}")
    rng = torch.Generator().manual_seed(0)
    one = {s: torch.randn(5, made.clients.layout.size(s), generator=rng) for s in SCOPES}
    two = {**one, "device": torch.randn(one["device"].shape, generator=rng)}
    a, b = (
        round_step(made.initial, rows, torch.arange(5), made.aggregate, ServerStep("adam", 0.1))[0]
        for rows in (one, two)
    )
    for one, two in ((a.server.shared, b.server.shared), (a.server.personal, b.server.personal)):
        ours, theirs = tensors_of(one), tensors_of(two)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (a.devices.own.value != b.devices.own.value).any(1).all()


def test_a_devices_own_part_takes_the_step_of_its_own_gradient(llama_settings: Path) -> None:
    """Plain SGD, one round of feddpa: nobody else's data shows in it."""
    made = experiment(llama_settings, "adapters.method=feddpa", "server.optimizer=sgd", "server.lr=0.5")
    other = replace(made.clients, shards=(*made.clients.shards[:4], made.clients.shards[3]))
    one, two = (replace(made, clients=clients) for clients in (made.clients, other))
    own = [played(each, 2).devices.own.value for each in (one, two)]
    first = [play_round(each, each.initial)[0].devices.own.value for each in (one, two)]
    assert torch.equal(first[0][:4], first[1][:4]) and not torch.equal(first[0][4], first[1][4])
    assert not torch.equal(own[0][:4], own[1][:4]), "from the second round on the shared part carries it"


def test_device_models_are_scored_one_by_one_and_weighted_by_samples(llama_settings: Path) -> None:
    uneven = ("tasks.*.sizes=lognormal", "tasks.*.sizes_sigma=0.8", "tasks.*.samples_per_device=8")
    made = experiment(llama_settings, "adapters.method=local", *uneven, "tasks.*.test_samples=30", "server.lr=0.05")
    values = vectors(played(made, 2))
    differ = 0
    for n, task in enumerate(made.tasks):
        devices = [k for k in range(5) if made.clients.task_of[k] == n]
        scores = [score(made.clients, model_of(made.clients, values, n, k), task, "test") for k in devices]
        share = torch.tensor([float(len(made.clients.shards[k])) for k in devices]).double()
        share = share / share.sum()
        found = score_task(made.clients, values, n, task, "test")
        assert found.value == pytest.approx(sum(float(w) * s.value for w, s in zip(share, scores, strict=True)))
        assert found.balanced == pytest.approx(sum(float(w) * s.balanced for w, s in zip(share, scores, strict=True)))
        differ += found.value != pytest.approx(sum(s.value for s in scores) / len(scores))
    assert differ, "a plain mean would have been another number"


@pytest.mark.parametrize("head", SCOPES)
def test_a_head_moves_as_its_scope_says(head: str, bert_settings: Path) -> None:
    """Where it is one for all, all tasks' devices are in its sum and it is charged once; a frozen one stays."""
    made = experiment(bert_settings, f"adapters.head={head}", FEW)
    state, row = play_round(made, made.initial)
    found = models(made, state)["classifier.head"]
    start = models(made, made.initial)["classifier.head"]
    copies = {"global": 1, "task": 2, "device": 5, "frozen": 1}[head]
    assert len({tuple(one.flatten().tolist()) for one in found}) == copies
    assert torch.equal(found, start) == (head == "frozen")
    d_s, lengths = made.clients.layout.size("global"), made.clients.layout.task_lengths
    assert row.ledger.downlink_bits == 32 * (d_s + sum(lengths))
    assert state.devices.own.value.shape == (5, found[0].numel() if head == "device" else 0)


def test_rolora_moves_a_global_head_with_b(bert_settings: Path) -> None:
    made = experiment(bert_settings, "adapters.method=rolora", "adapters.head=global", FEW, *link_of("mmse"))
    heads = [models(made, made.initial)["classifier.head"][0]]
    state = made.initial
    for _ in range(2):
        state, _ = play_round(made, state)
        heads.append(models(made, state)["classifier.head"][0])
    assert not torch.equal(heads[0], heads[1]) and torch.equal(heads[1], heads[2])
