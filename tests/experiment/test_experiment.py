"""Settings to objects: the shape hook is on, wrong settings are told in one line, what a run stands on is noticed."""

from pathlib import Path

import jaxtyping
import pytest
import torch

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.experiment import build
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import OptimizedParameters, ServerStep, update
from support.experiments import experiment_of


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    settings = settings_file.read_settings(file, overrides)
    return experiment_of(settings)


def test_the_hook_that_checks_shapes_is_on() -> None:
    """Without it every annotated shape would be a comment."""
    two = OptimizedParameters(torch.zeros(2, 3), {}, torch.zeros(2, dtype=torch.long))
    moves = torch.tensor([True, False])
    assert update(two, torch.ones(2, 3), moves, ServerStep("sgd", 1.0)).value.sum() == -3
    for wrong in (torch.ones(2, 3, dtype=torch.long), torch.ones(6), torch.ones(3, 3)):
        with pytest.raises(jaxtyping.TypeCheckError):
            update(two, wrong, moves, ServerStep("sgd", 1.0))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('adapters.target_modules=["q_prj"]', ("adapters.target_modules", "q_prj", "did you mean 'q_proj'?")),
        ("adapters.layers=[0, 12]", ("adapters.layers", "12", "from 0 to 11")),
        ("model.kind=causl", ("model.kind", "causl")),
        ("model.base=/no/such/model", ("model.base", "/no/such/model")),
    ],
)
def test_wrong_settings_are_told_in_one_line(
    override: str, words: tuple[str, ...], llama_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        experiment(llama_settings, override)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("radio.clipping_db=3.0", "radio.mixing=none"), "clipping amplifier"),
        (("radio.access=superposed", "radio.design=mmse"), "a number for radio.correlation"),
        (("radio.topology=two_hop", "radio.design=mmse"), "a number for radio.correlation"),
    ],
)
def test_the_theory_refuses_a_link_that_claims_nothing(overrides, words, llama_settings: Path) -> None:
    with pytest.raises(UserError, match=words):
        experiment(llama_settings, "theory.meter_every=1", "server.optimizer=sgd", *overrides)


def test_a_heads_scope_is_for_a_base_with_a_head(llama_settings: Path) -> None:
    """Told where a run begins; a run that is there is opened as it is."""
    base = experiment(llama_settings, "adapters.head=global").clients.backbone
    build.check_head_scope(settings_file.read_settings(llama_settings, ["adapters.head=task"]), base)
    with pytest.raises(UserError, match=r'adapters\.head = "global": does nothing'):
        build.check_head_scope(settings_file.read_settings(llama_settings, ["adapters.head=global"]), base)


def test_a_classifier_cannot_generate(bert_settings: Path) -> None:
    with pytest.raises(UserError, match="a classifier cannot generate; use a causal LM"):
        experiment(bert_settings, "tasks.moods.kind=generate", "tasks.moods.labels={}", "tasks.moods.label=text")


def test_the_fingerprint_moves_with_whatever_moves_numbers(llama_settings: Path, tmp_path: Path) -> None:
    plain = experiment(llama_settings).fingerprint
    for same in ("server.rounds=9", "run.eval_every=0", "run.threads=1"):
        assert experiment(llama_settings, same).fingerprint == plain, same
    for other in ("run.seed=1", "server.lr=0.1", "radio.snr_db=3.0", "adapters.alpha=8"):
        assert experiment(llama_settings, other).fingerprint != plain, other
    file = tmp_path / "moods.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], lines[-1].replace(",", " ba,")]) + "\n")
    assert experiment(llama_settings).fingerprint != plain, "one word of one row"


def test_a_control_token_in_a_prompt_is_text_and_it_is_told(llama_settings: Path) -> None:
    made = experiment(llama_settings, "tasks.colours.prompt='{text} </s> Label :'")
    assert made.clients.backbone.notes == (
        "tasks.colours.prompt: '</s>' is read as text, not as the tokenizer's control token",
    )
    assert all(4 not in sample.ids for shard in made.clients.shards for sample in shard)
