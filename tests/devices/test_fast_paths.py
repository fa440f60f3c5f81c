"""Fast ways of computing are used only where they give the numbers of one sample at a time, on whatever base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import randomise
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.devices import fast_paths
from airpfed.devices.clients import draw_batches
from airpfed.devices.evaluate import last_scores
from airpfed.devices.gradients import gradients
from airpfed.experiment import build
from airpfed.model.backbone import FastPaths
from airpfed.model.methods import SCOPES, blocks_of
from airpfed.model.tokens import Encoding
from airpfed.training.evaluate import model_of
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors
from support.experiments import computed, experiment_of
from support.models import WORDS, save_tokenizer
from support.settings import make_settings
from support.single_device import one_device

ROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [4.0, 9.0], "rope_theta": 1e4,
        "original_max_position_embeddings": 8}  # fmt: skip

BASES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "time before batch": ("xlnet", ["layer_1", "layer_2"], {"d_model": 16, "n_layer": 4, "n_head": 4, "d_inner": 24}),
    "layers that are not whole": ("xlm", ["q_lin", "out_lin"], {"emb_dim": 16, "n_layers": 4, "n_heads": 4}),
    "tuples": ("mpnet", ["q", "v"], {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
               "intermediate_size": 24}),
    "a tensor without a batch": ("deberta-v2", ["query_proj", "value_proj"], {"hidden_size": 16, "num_hidden_layers": 4,
               "num_attention_heads": 4, "intermediate_size": 24, "relative_attention": True, "share_att_key": True,
               "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8}),
    "positions from the longest": ("phi3", ["qkv_proj", "down_proj"], {"hidden_size": 16, "num_hidden_layers": 4,
               "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 24, "rope_parameters": ROPE,
               "original_max_position_embeddings": 8}),
    "positions from elsewhere": ("camembert", ["query", "value"], {"hidden_size": 16, "num_hidden_layers": 4,
               "num_attention_heads": 4, "intermediate_size": 24, "is_decoder": True}),
    "biased by distance": ("bloom", ["query_key_value", "dense"], {"hidden_size": 16, "n_layer": 4, "n_head": 4}),
    "positions from the left": ("electra", ["query", "value"], {"hidden_size": 32, "embedding_size": 32,
               "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 64}),
    "all fast": ("llama", ["q_proj", "down_proj"], {"hidden_size": 16, "num_hidden_layers": 4,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}),
}  # fmt: skip
CAUSAL = ("phi3", "camembert", "bloom", "llama")
SILENT = ("tuples", "positions from the left")
"""Bases on which nothing is slow, or only at some sizes."""


def base(folder: Path, name: str, *, hard: bool = False) -> Path:
    """A settings file for a small base; hard: with weights that amplify rounding, and a tokenizer that pads left."""
    kind, modules, more = BASES[name]
    shared = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 4}
    long = {} if kind in ("xlnet", "bloom") else {"max_position_embeddings": 64}
    config = AutoConfig.for_model(kind, **shared, **long, **more)
    torch.manual_seed(3)
    auto = AutoModelForCausalLM if kind in CAUSAL else AutoModel
    model = auto.from_config(config)
    if hard:
        randomise(model)
    model.save_pretrained(folder / kind)
    save_tokenizer(folder / kind)
    if hard:
        AutoTokenizer.from_pretrained(folder / kind, padding_side="left").save_pretrained(folder / kind)
    file = make_settings(folder, folder / kind, causal=kind in CAUSAL)
    names = ", ".join(f'"{module}"' for module in modules)
    text = file.read_text()
    begin = text.index("target_modules")
    file.write_text(text[:begin] + f"target_modules = [{names}]" + text[text.index("\n", begin) :])
    return file


def made_of(file: Path, *overrides: str) -> TrainingSetup:
    settings = settings_file.read_settings(file, ["devices.batch_size=3", *overrides])
    return experiment_of(settings)


@pytest.mark.parametrize("layers", ["all", "last-1"])
@pytest.mark.parametrize("name", BASES)
def test_gradients_and_answers_are_those_of_one_sample_at_a_time_on_any_base(
    name: str, layers: str, tmp_path: Path
) -> None:
    """Against the model as Hugging Face made it, unpadded and with hooks; five devices of unlike data."""
    file = base(tmp_path, name)
    made = made_of(file, f"adapters.layers={layers}")
    clients = made.clients
    rng = torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    plan, _ = draw_batches(clients, made.initial.devices.cursors, 3, 1)
    found, losses = gradients(clients, values, plan, 0.0, made.devices_per_pass)
    spec = one_device(Path(clients.backbone.folder), clients, blocks_of("airpfed", 2, 2))
    for k, rows in enumerate(plan):
        task = int(clients.task_of[k])
        own = {"global": values["global"][0], "task": values["task"][task], "device": values["device"][k],
               "frozen": values["frozen"][0]}  # fmt: skip
        samples = [clients.shards[k][i] for i in rows[0]]
        classes = clients.classes[task] or None
        loss, right = spec.gradient(spec.cut(own), samples, classes)
        right = torch.cat([spec.paste(right)[scope] for scope in SCOPES])
        mine = torch.cat([found[scope][k][: len(spec.paste(spec.cut(own))[scope])] for scope in SCOPES])
        assert (mine - right).norm() <= 1e-4 * right.norm(), f"device {k}"
        assert abs(float(losses[k]) - float(loss)) <= 1e-4 * float(loss)
    prompts = made.tasks[0].test.prompts
    model = model_of(clients, values, 0, 0)
    together = last_scores_of(made, model, [list(range(len(prompts)))])
    alone = torch.cat([last_scores(computed(clients, **SLOW), model, "t", [prompt], [0]) for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


SLOW = dict.fromkeys(vars(FastPaths()), False)


def last_scores_of(made: TrainingSetup, model: Any, batches: list[list[int]]) -> torch.Tensor:
    prompts = made.tasks[0].test.prompts
    if not made.clients.backbone.paths.batching:
        batches = [[index] for batch in batches for index in batch]
    return torch.cat([last_scores(made.clients, model, "test", prompts, batch) for batch in batches])


def test_what_is_fast_and_what_is_slow_is_as_measured(tmp_path: Path) -> None:
    paths = {}
    for name in BASES:
        (tmp_path / name).mkdir()
        made = made_of(base(tmp_path / name, name), "adapters.layers=last-1")
        paths[name] = made.clients.backbone.paths
        assert bool(made.notes) != (name == "all fast") or name in SILENT, made.notes
    assert all(value for key, value in vars(paths["all fast"]).items())
    assert not paths["time before batch"].stacking and not paths["a tensor without a batch"].stacking
    assert not paths["layers that are not whole"].prefix and paths["tuples"].prefix
    assert not paths["positions from the longest"].batching
    assert paths["biased by distance"].stacking


def test_a_way_that_computes_something_else_is_seen(llama_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault makes one way wrong by 2 %, or makes it raise."""
    settings = settings_file.read_settings(llama_settings, ["adapters.layers=last-4"])
    tasks = build.load_tasks(settings)
    prepared = build.build_preparation(settings, tasks)
    monkeypatch.setattr(fast_paths, "cached_text", lambda _folder, _key, make: make())
    assert all(vars(build.build_experiment(settings, tasks, prepared).clients.backbone.paths).values())

    from airpfed.devices import gradients as fleets
    from airpfed.devices import prefix_cache
    from airpfed.model import attention, layers

    real = prefix_cache.PrefixCache.rows
    with monkeypatch.context() as patch:
        patch.setattr(
            prefix_cache.PrefixCache, "rows", lambda *a: None if (r := real(*a)) is None else [1.02 * x for x in r]
        )
        found = build.build_experiment(settings, tasks, prepared)
    assert not found.clients.backbone.paths.prefix and "layers below" in found.notes[0] and "off by" in found.notes[0]
    packed = fleets.packed_losses
    with monkeypatch.context() as patch:
        patch.setattr(fleets, "packed_losses", lambda *a: 1.02 * packed(*a))
        found = build.build_experiment(settings, tasks, prepared)
    assert not found.clients.backbone.paths.packing and found.clients.backbone.paths.prefix
    with monkeypatch.context() as patch:
        patch.setattr(layers.LowRank, "backward", lambda *_a: 1 / 0)
        found = build.build_experiment(settings, tasks, prepared)
    assert not found.clients.backbone.paths.fused and "ZeroDivisionError" in found.notes[0]
    assert attention.NAME


def test_a_base_whose_adapters_nothing_depends_on_is_named(
    llama_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airpfed.devices import gradients as fleets

    monkeypatch.setattr(fast_paths, "cached_text", lambda _folder, _key, make: make())
    real = fleets.logits
    monkeypatch.setattr(fleets, "logits", lambda *given: real(*given).detach())
    with pytest.raises(UserError, match="no adapter has a gradient"):
        made_of(llama_settings)


def test_a_base_that_gives_other_numbers_each_time_is_named(
    llama_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airpfed.devices import evaluate

    monkeypatch.setattr(fast_paths, "cached_text", lambda _folder, _key, make: make())
    real, calls = evaluate.logits, iter(range(1000))
    monkeypatch.setattr(evaluate, "logits", lambda *given: real(*given) * (1 + 0.01 * next(calls)))
    with pytest.raises(UserError, match=r"gives other numbers when it reads a text again \(off by"):
        made_of(llama_settings)


def test_a_text_that_repeats_itself_is_as_long_as_wanted_and_padded() -> None:
    sample = Encoding((9, 1, 2, 3, 4, 5, 8), (1, 2))
    assert fast_paths.repeat_tokens(sample, 9) == Encoding((9, 1, 2, 3, 1, 2, 3, 1, 8), (1, 2))
    assert fast_paths.repeat_tokens(sample, 4) == Encoding((9, 1, 2, 8), (1, 2))
    assert fast_paths.repeat_tokens(sample, 1) == Encoding((8,), (1,))
    assert fast_paths.repeat_tokens(Encoding((7,), (1,)), 5).ids == (7,) * 5


def test_a_measurement_is_kept_by_what_it_depends_on(
    llama_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRPFED_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    real = fast_paths.measure_paths
    monkeypatch.setattr(fast_paths, "measure_paths", lambda *given: seen.append(1) or real(*given))
    first = made_of(llama_settings)
    assert made_of(llama_settings).clients.backbone.paths == first.clients.backbone.paths and len(seen) == 1
    for number, change in enumerate(
        ("adapters.layers=last-4", "adapters.rank_shared=3", 'adapters.target_modules=["v_proj"]',
         "model.max_tokens=6", "devices.chunk=1", "tasks.colours.kind=generate"), 2
    ):  # fmt: skip
        more = ["tasks.colours.labels={}", "tasks.colours.label=text"] if "generate" in change else []
        made_of(llama_settings, change, *more)
        assert len(seen) == number, change
    kept = sorted((tmp_path / "cache" / "fast_paths").iterdir())
    for file in kept:
        file.write_text('{"paths": {"prefix": 3}}')
    assert made_of(llama_settings).clients.backbone.paths == first.clients.backbone.paths, "a damaged one is made again"


def test_a_base_that_is_no_numbers_is_named_before_round_1(llama_settings: Path, tmp_path: Path) -> None:
    settings = settings_file.read_settings(llama_settings, [])
    model = AutoModelForCausalLM.from_pretrained(settings.model.base)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    folder = tmp_path / "broken"
    model.save_pretrained(folder)
    save_tokenizer(folder)
    with pytest.raises(UserError, match="holds NaN or infinite values"):
        made_of(llama_settings, f"model.base={folder}")


def test_in_bfloat16_rounding_is_told_from_faults(tmp_path: Path) -> None:
    """Rounding of a percent hides no fault: what the slow paths compute otherwise is off by more."""
    paths = {}
    for name in ("all fast", "a tensor without a batch", "positions from the longest", "positions from the left"):
        (tmp_path / name).mkdir()
        made = made_of(base(tmp_path / name, name, hard=name.endswith("left")), "model.dtype=bfloat16")
        backbone = made.clients.backbone
        paths[name] = backbone.paths
        assert backbone.coarse and fast_paths.TOLERANCE < backbone.tolerance < 0.5
    fast = paths["all fast"]
    assert fast.stacking and fast.batching and fast.packing and fast.last_layer and not fast.fused
    assert not paths["a tensor without a batch"].stacking
    assert not paths["positions from the longest"].batching
    left = paths["positions from the left"]
    assert left.batching and not left.pad_left, "padding on the wrong side is off by less than bfloat16's rounding"
