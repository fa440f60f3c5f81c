"""What a model answers: the best of the choices by the model run alone, greedy completions that are always the same."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.devices.evaluate import classify, complete
from airpfed.model.layout import Vectors
from airpfed.model.methods import blocks_of
from airpfed.model.tokens import Encoding
from airpfed.training.evaluate import model_of
from airpfed.training.setup import TrainingSetup
from support.experiments import experiment_of, random_vectors
from support.single_device import Leaves, OneDevice, one_device

WORDS = ("tasks.*.kind=generate", "tasks.*.label=text", "tasks.*.labels={}")


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    settings = settings_file.read_settings(file, ["tasks.*.test_samples=40", *overrides])
    return experiment_of(settings)


def rows_of(values: Vectors, task: int) -> dict[str, Tensor]:
    none = torch.zeros(0)
    return {"global": values["global"][0], "task": values["task"][task], "device": none, "frozen": none}


def levelled(alone: OneDevice, leaves: Leaves, samples: Sequence[Encoding]) -> Leaves:
    """A head whose biases make every class as likely as another: a random encoder's would always win for one class."""
    with torch.no_grad(), alone.hooked(leaves):
        out = [alone.model(input_ids=torch.tensor([sample.ids])).logits[0] for sample in samples]
    changed = {key: tensor.detach().clone() for key, tensor in leaves.items()}
    for name in alone.heads:
        changed[name, "head", 0][:, -1] -= torch.stack(out).mean(0)
    return changed


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_an_answer_is_the_best_choice_of_the_tasks_own_model(kind: str, request: pytest.FixtureRequest) -> None:
    """40 samples are more than a batch holds, so answers must find back to their places."""
    made = experiment(request.getfixturevalue(f"{kind}_settings"))
    values, task = random_vectors(made), made.tasks[1]
    alone = one_device(request.getfixturevalue(f"tiny_{kind}"), made.clients, blocks_of("airpfed", 2, 2))
    values["task"][1] = alone.paste(levelled(alone, alone.cut(rows_of(values, 1)), task.test.prompts))["task"]
    found = classify(made.clients, model_of(made.clients, values, 1, 2), "test moods", task.test.prompts, task.choices)
    for sample, choice in zip(task.test.prompts, found, strict=True):
        with torch.no_grad(), alone.hooked(alone.cut(rows_of(values, 1))):
            out = alone.model(input_ids=torch.tensor([sample.ids])).logits
        scores = (out[0, -1] if alone.causal else out[0])[list(task.choices)]
        assert scores[choice] >= scores.max() - 1e-5
    assert len(set(found)) > 1


def test_completions_are_greedy_and_always_the_same(llama_settings: Path, tiny_llama: Path) -> None:
    made = experiment(llama_settings, *WORDS)
    values, limit = random_vectors(made), 5
    prompts = [sample.ids for sample in made.tasks[1].test.prompts]
    factors = model_of(made.clients, values, 1, 2)
    found = complete(made.clients, factors, prompts, limit)
    assert found == complete(made.clients, factors, prompts, limit)
    alone = one_device(tiny_llama, made.clients, blocks_of("airpfed", 2, 2))
    leaves, tokenizer = alone.cut(rows_of(values, 1)), made.clients.backbone.tokenizer
    for prompt, text in list(zip(prompts, found, strict=True))[:10]:
        ids = list(prompt)
        for _ in range(limit):
            with torch.no_grad(), alone.hooked(leaves):
                ids.append(int(alone.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert len(set(found)) > 1
    assert complete(made.clients, None, prompts, limit) != found


HABITS = {
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_length": 60, "min_new_tokens": 5, "num_beams": 3,
    "do_sample": True, "temperature": 3.0, "top_k": 5, "forced_eos_token_id": 30, "forced_bos_token_id": 31,
    "suppress_tokens": list(range(40, 60)), "begin_suppress_tokens": list(range(20, 40)), "max_length": 7,
    "bad_words_ids": [[61]], "exponential_decay_length_penalty": [1, 5.0], "renormalize_logits": True,
    "guidance_scale": 3.0, "sequence_bias": [[[62], 50.0]], "encoder_repetition_penalty": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("habit", [*HABITS, "all"])
def test_decoding_has_none_of_the_bases_habits(
    habit: str, small_settings: Path, small_llama: Path, tmp_path: Path
) -> None:
    """Plain greedy, whatever generation_config.json says."""
    base = shutil.copytree(small_llama, tmp_path / "base")
    tree = {key: value for key, value in HABITS.items() if habit in (key, "all")}
    made = experiment(small_settings, *WORDS)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 4, "pad_token_id": 0, **tree}))
    other = experiment(small_settings, *WORDS, f"model.base={base}")
    prompts, factors = (
        [sample.ids for sample in made.tasks[1].test.prompts][:6],
        model_of(made.clients, random_vectors(made), 1, 2),
    )
    plain = complete(made.clients, factors, prompts, 6)
    assert complete(other.clients, factors, prompts, 6) == plain and len(set(plain)) > 1


@pytest.mark.parametrize(
    ("declared", "ends"),
    [(4, (4,)), (30, (4,)), ([30, 4], (4,)), (3, (4, 3)), (None, (4,)), (10**6, (4,))],
)
def test_an_answer_ends_where_training_answers_end(
    declared: Any, ends: tuple[int, ...], small_settings: Path, small_llama: Path, tmp_path: Path
) -> None:
    """And at other control tokens that the base declares as ends, never at an ordinary word (30)."""
    base = shutil.copytree(small_llama, tmp_path / "base")
    tree = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**tree, "eos_token_id": declared}))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    tokens = json.loads((base / "tokenizer.json").read_text())
    tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 3, "content": "[SEP]"})
    (base / "tokenizer.json").write_text(json.dumps(tokens))
    made = experiment(small_settings, *WORDS, f"model.base={base}")
    assert made.clients.backbone.end_tokens == ends
    assert made.clients.backbone.model.generation_config.eos_token_id == list(ends)
    assert all(sample.targets[-1] == 4 for shard in made.clients.shards for sample in shard)


def test_a_base_without_an_end_token_classifies_but_does_not_generate(
    llama_settings: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        tree = json.loads((base / name).read_text())
        gone = {"eos_token_id", "eos_token"}
        (base / name).write_text(json.dumps({key: value for key, value in tree.items() if key not in gone}))
    experiment(llama_settings, f"model.base={base}")
    with pytest.raises(UserError, match="its tokenizer has no end token, so no answer could end; set eos_token"):
        experiment(llama_settings, *WORDS, f"model.base={base}")
