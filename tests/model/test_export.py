"""Exports: PEFT alone gives our logits, whatever the ranks and scopes; a slip of the scale does not pass."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.experiment import artifacts
from airpfed.model import export
from airpfed.model.forward import logits, with_adapters
from airpfed.model.layout import Factors
from airpfed.training.evaluate import model_of
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import DeviceState, OptimizedParameters, ServerState, State, vectors
from support.experiments import experiment_of

RANKS = ("adapters.rank_shared=3", "adapters.rank_personal=1", "adapters.alpha=6")


def experiment(file: Path, *overrides: str) -> tuple[Settings, TrainingSetup]:
    settings = settings_file.read_settings(file, [*RANKS, *overrides])
    return settings, experiment_of(settings)


def random_state(made: TrainingSetup) -> State:
    """Every factor of size 0.2: no error of a factor can hide behind zeros."""
    rng = torch.Generator().manual_seed(0)

    def drawn(moving: OptimizedParameters) -> OptimizedParameters:
        return replace(moving, value=0.2 * torch.randn(moving.value.shape, generator=rng))

    begin = made.initial
    server = ServerState(drawn(begin.server.shared), drawn(begin.server.personal), begin.server.correlation_statistics)
    own = DeviceState(drawn(begin.devices.own), begin.devices.cursors)
    return State(1, server, own, 0.2 * torch.randn(begin.frozen.shape, generator=rng))


def plain(made: TrainingSetup, folder: str | Path, task: int) -> Any:
    """The base (or a merged model) as a user loads it."""
    if made.clients.backbone.causal:
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=made.clients.classes[task], ignore_mismatched_sizes=True
    ).eval()


def theirs(model: Any, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids])).logits
    return out[:, -1] if out.dim() == 3 else out


def ours(made: TrainingSetup, factors: Factors, ids: tuple[int, ...], task: int) -> Tensor:
    base, tokens = made.clients.backbone, torch.tensor([ids])
    with torch.no_grad(), with_adapters(base, factors):
        out = logits(base, tokens, torch.ones_like(tokens, dtype=torch.bool), 1)[:, -1]
    return out if base.causal else out[:, : made.clients.classes[task]]


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


CASES = [
    ("llama", "airpfed", "all"),
    ("llama", "fedsa", "last-4"),
    ("bert", "airpfed", "all"),
    ("bert", "feddpa", "all"),
]


@pytest.mark.parametrize(("kind", "method", "layers"), CASES)
def test_peft_alone_gives_our_logits(
    kind: str, method: str, layers: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every task's model, every device's where anything is of device scope, and the merged weights."""
    settings, made = experiment(
        request.getfixturevalue(f"{kind}_settings"), f"adapters.method={method}", f"adapters.layers={layers}"
    )
    state, base = random_state(made), made.clients.backbone
    written = artifacts.export_adapters(settings, made, state, tmp_path, merged=True)
    per_device = method in ("fedsa", "feddpa")
    names = [["colours"], ["moods"]]
    if per_device:
        names = [[f"colours/device-{k}" for k in (0, 1)], [f"moods/device-{k}" for k in (2, 3, 4)]]
    assert written == [tmp_path / "adapters" / name for part in names for name in part]
    differ = []
    for n, part in enumerate(names):
        for name in part:
            device = int(name[-1]) if per_device else (0, 2)[n]
            factors = model_of(made.clients, vectors(state), n, device)
            reloaded = PeftModel.from_pretrained(plain(made, base.folder, n), tmp_path / "adapters" / name).eval()
            config = json.loads((tmp_path / "adapters" / name / "adapter_config.json").read_text())
            assert (config["r"], config["lora_alpha"]) == (4, 6.0)
            merged = plain(made, tmp_path / "merged" / name, n)
            for sample in made.tasks[n].test.prompts[:2]:
                wanted = ours(made, factors, sample.ids, n)
                assert gap(theirs(reloaded, sample.ids), wanted) < 1e-4, name
                assert gap(theirs(merged, sample.ids), wanted) < 1e-4, name
            differ.append(wanted)
            with torch.no_grad(), with_adapters(base, None):
                untouched = ours(made, model_of(made.clients, vectors(made.initial), n, device), sample.ids, n)
            assert gap(untouched, wanted) > 1e-2, "the adapter does something"


def test_a_slip_of_two_percent_in_the_scale_is_refused(llama_settings: Path, tmp_path: Path) -> None:
    _, made = experiment(llama_settings)
    factors = model_of(made.clients, vectors(random_state(made)), 0, 0)
    samples = made.tasks[0].test.prompts[:4]
    base = made.clients.backbone

    def checked(alpha: float, values: Factors = factors) -> None:
        export.export_adapter(base, values, 0, alpha, tmp_path / "a", export.fresh_base(base, 0), samples)

    checked(6.0)
    with pytest.raises(UserError, match="logits differ by"):
        checked(6.0 * 1.02)


def test_an_export_is_put_in_place_whole(llama_settings: Path, tmp_path: Path) -> None:
    _, made = experiment(llama_settings)
    factors = model_of(made.clients, vectors(made.initial), 0, 0)
    base, samples = made.clients.backbone, made.tasks[0].test.prompts[:4]
    for _ in range(2):
        export.export_adapter(base, factors, 0, 6.0, tmp_path / "a", export.fresh_base(base, 0), samples)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["a"]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(made.clients.backbone.target_layers), "the same file on every machine"


def test_an_adapter_that_does_not_pass_takes_no_place(llama_settings: Path, tmp_path: Path) -> None:
    _, made = experiment(llama_settings)
    factors, base = model_of(made.clients, vectors(made.initial), 0, 0), made.clients.backbone

    def checked(values: Factors) -> None:
        samples = made.tasks[0].test.prompts[:4]
        export.export_adapter(base, values, 0, 6.0, tmp_path / "deep" / "a", export.fresh_base(base, 0), samples)

    broken = {name: value * torch.nan for name, value in factors.items()}
    with pytest.raises(UserError, match="training has diverged"):
        checked(broken)
    assert list((tmp_path / "deep").iterdir()) == []
    checked(factors)
    before = (tmp_path / "deep" / "a" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="training has diverged"):
        checked(broken)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]
    assert (tmp_path / "deep" / "a" / "adapter_model.safetensors").read_bytes() == before


def test_a_narrow_tasks_head_is_cut_to_its_own_classes(bert_settings: Path) -> None:
    _, made = experiment(bert_settings)
    factors = model_of(made.clients, vectors(random_state(made)), 0, 0)
    tensors = export.peft_tensors(made.clients.backbone, factors, 2)
    weight, bias = (tensors[f"base_model.model.classifier.{name}"] for name in ("weight", "bias"))
    assert torch.equal(torch.cat([weight, bias[:, None]], 1), factors["classifier.head"][0, :2])


def exported(base: Any, factors: Factors, folder: Path, samples: Any) -> Any:
    return export.export_adapter(base, factors, 0, 6.0, folder, export.fresh_base(base, 0), samples)


def test_a_model_that_is_refused_does_not_reach_its_folder(llama_settings: Path, tmp_path: Path) -> None:
    """Nor does it take the place of one that was good."""
    _, made = experiment(llama_settings)
    base, samples = made.clients.backbone, made.tasks[0].test.prompts[:2]
    good = model_of(made.clients, vectors(random_state(made)), 0, 0)
    bad = {key: value * torch.nan for key, value in good.items()}
    with pytest.raises(UserError, match="logits are no numbers, training has diverged"):
        exported(base, bad, tmp_path / "a", samples)
    assert list(tmp_path.glob("a*")) == list(tmp_path.glob(".a*")) == []
    exported(base, good, tmp_path / "a", samples)
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError):
        exported(base, bad, tmp_path / "a", samples)
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "a" in path.name and path.is_dir()] == ["a"]


@pytest.mark.parametrize("own", ["thesis.tex", "adapters/x.txt", ".hidden", "config.json"])
def test_an_export_removes_nothing_that_it_did_not_write(own: str, llama_settings: Path, tmp_path: Path) -> None:
    _, made = experiment(llama_settings)
    base, samples = made.clients.backbone, made.tasks[0].test.prompts[:2]
    factors = model_of(made.clients, vectors(random_state(made)), 0, 0)
    for begun in (False, True):  # also not where an adapter lies beside it
        folder = tmp_path / f"a{begun}"
        if begun:
            exported(base, factors, folder, samples)
        (folder / own).parent.mkdir(parents=True, exist_ok=True)
        (folder / own).write_text("mine")
        with pytest.raises(UserError, match="was not written by airpfed and would be lost"):
            exported(base, factors, folder, samples)
        assert (folder / own).read_text() == "mine"


def test_merged_weights_are_put_in_place_whole(llama_settings: Path, tmp_path: Path) -> None:
    settings, made = experiment(llama_settings)
    for _ in range(2):
        artifacts.export_adapters(settings, made, made.initial, tmp_path, merged=True)
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["colours", "moods"]
    (tmp_path / "merged" / "moods" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: was not written by airpfed"):
        artifacts.export_adapters(settings, made, made.initial, tmp_path, merged=True)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_weights_that_were_merged_wrongly_take_no_place(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared is read back from the files."""
    settings, made = experiment(request.getfixturevalue(f"{kind}_settings"))
    state = random_state(made)
    merge = export.merge_adapter

    def slip(reloaded: Any) -> Any:
        plain = merge(reloaded)
        with torch.no_grad():
            next(weight for name, weight in plain.named_parameters() if "value" in name or "v_proj" in name).mul_(1.02)
        return plain

    monkeypatch.setattr(export, "merge_adapter", slip)
    with pytest.raises(UserError, match="the merged weights' logits differ by"):
        artifacts.export_adapters(settings, made, state, tmp_path, merged=True)
    assert not list((tmp_path / "merged").iterdir())


@pytest.mark.parametrize(
    ("known", "ends", "written"),
    [(2, [2], 2), (2, [2, 5], [2, 5]), ([2, 5], [5, 2], [2, 5]), (None, [7], [7]), ([2, 3], [2, 3, 9], [2, 3, 9])],
)
def test_tokens_that_end_a_turn_are_added_to_a_generation_config(known: Any, ends: list[int], written: Any) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
    export.set_end_tokens(model, ends)
    assert model.generation_config.eos_token_id == written
    export.set_end_tokens(SimpleNamespace(), ends)  # a classifier has none
