"""Packing: no sample is cut, lost or read by another, and gradients are those of padded samples."""

from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from airpfed import build, reading
from airpfed.devices import fleet as fleets
from airpfed.devices.fleet import batches, chunks, gradients
from airpfed.devices.packing import LIMIT, pack, packing, placed
from airpfed.model.backbone import PACKABLE, Backbone, packed_logits
from airpfed.model.encode import IGNORED, Encoded
from airpfed.rounds.state import vectors

LENGTHS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=5)


@settings(deadline=None)
@given(lengths=LENGTHS, more=st.integers(0, 60))
def test_every_sample_lies_whole_in_a_row_and_among_its_devices_tokens(lengths: list[list[int]], more: int) -> None:
    sizes = list(chain(*lengths))
    plan = packing(lengths, max(sizes) + more)
    assert plan.rows <= len(sizes) and sum(plan.spans) == plan.rows * plan.width
    pieces = sorted(zip(plan.starts, sizes, strict=True))
    assert all(a + size <= b for (a, size), (b, _) in pairwise(pieces))
    assert all(a // plan.width == (a + size - 1) // plan.width for a, size in pieces)
    first, starts = 0, iter(plan.starts)
    for own, span in zip(lengths, plan.spans, strict=True):
        assert all(first <= next(starts) <= first + span - size for size in own)
        first += span
    best = pack(lengths)
    assert best.cost <= packing(lengths, max(sizes)).cost and best.width <= max(LIMIT, *sizes)


def test_tokens_positions_and_targets_are_in_their_places() -> None:
    samples = [Encoded((5, 6, 7), (8, 9)), Encoded((3,), (4,)), Encoded((1, 2), (2, 3))]
    found = placed(samples, packing([[3, 1], [2]], 4), 0)
    assert found.ids.tolist() == [[5, 6, 7, 3], [1, 2, 0, 0]]
    assert found.positions.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert found.at.tolist() == [[1, 2], [3, 3], [4, 5]]
    assert found.targets.tolist() == [[8, 9], [IGNORED, 4], [2, 3]]


@pytest.mark.parametrize("kind", PACKABLE)
def test_samples_in_one_row_do_not_see_each_other(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    base = Backbone(model, None, "", True, {}, {}, {}, ())
    assert base.packs
    samples = [Encoded(tuple(range(a, b)), (0, 0)) for a, b in ((3, 9), (10, 12), (20, 31), (33, 38))]
    lengths = [len(sample.ids) for sample in samples]
    batch = placed(samples, packing([lengths], 16), 0)
    assert batch.ids.shape == (2, 16)
    with torch.no_grad():
        found = packed_logits(base, batch.ids, batch.positions, batch.at)
        for sample, scores in zip(samples, found, strict=True):
            alone = model(input_ids=torch.tensor([sample.ids])).logits[0, -2:]
            torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", ["all", "last-2"])
@pytest.mark.parametrize("method", ["airpfed", "feddpa"])
@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_gradients_are_those_of_padded_samples(
    llama_settings: Path, kind: str, method: str, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [f"adapters.layers={layers}", f"adapters.method={method}", "devices.batch_size=10"]
    if kind == "generate":
        changes += ["tasks.colours.labels={}", "tasks.colours.kind=generate", "tasks.colours.label=text"]
    read = reading.read(llama_settings, changes)
    made = build.experiment(read, build.load_tasks(read))
    rng = torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    plan, _ = batches(made.fleet, made.initial.devices.cursors, 10, 1)
    assert len({len(rows[0]) for rows in plan}) == 2, "devices of unequally many samples"
    passes: list[int] = []
    real = fleets.packed_losses
    monkeypatch.setattr(fleets, "packed_losses", lambda *given: passes.append(1) or real(*given))
    found, loss = gradients(made.fleet, values, plan, 0.0, 3)
    assert len(passes) == len(list(chunks(made.fleet, plan, 3))) == 2
    monkeypatch.setattr("airpfed.model.backbone.PACKABLE", ())
    padded, wanted = gradients(made.fleet, values, plan, 0.0, 3)
    assert len(passes) == 2, "padded this time"
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for scope, rows in padded.items():
        assert not rows.numel() or (found[scope] - rows).norm() <= 1e-5 * rows.norm()


def test_samples_of_one_length_are_not_packed(llama_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reading.read(llama_settings, ["model.max_tokens=4"])
    made = build.experiment(read, build.load_tasks(read))
    monkeypatch.setattr(fleets, "packed_losses", None)
    plan, _ = batches(made.fleet, made.initial.devices.cursors, 3, 1)
    _, loss = gradients(made.fleet, vectors(made.initial), plan, 0.0, 5)
    assert loss.isfinite().all()


def test_neighbours_share_a_pass_up_to_the_tokens_of_the_largest(llama_settings: Path) -> None:
    read = reading.read(llama_settings, [])
    made = build.experiment(read, build.load_tasks(read))
    plan, _ = batches(made.fleet, made.initial.devices.cursors, 3, 1)
    tokens = [sum(len(made.fleet.shards[k][i].ids) for i in rows[0]) for k, rows in enumerate(plan)]
    for size in range(1, 6):
        found = list(chunks(made.fleet, plan, size))
        assert list(chain(*found)) == list(range(5))
        assert all(sum(tokens[k] for k in part) <= size * max(tokens) and len(part) <= 2 * size for part in found)
