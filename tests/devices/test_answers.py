"""What a model answers: the best of the choices by the model run alone, greedy completions that are always the same."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from one_device import Leaves, OneDevice, one_device
from torch import Tensor

from airpfed import build, reading
from airpfed.devices.evaluate import classify, complete
from airpfed.model.adapters import blocks_of
from airpfed.model.encode import Encoded
from airpfed.model.vector import Vectors
from airpfed.rounds.evaluate import model_of
from airpfed.rounds.run import Experiment
from airpfed.rounds.state import vectors

WORDS = ("tasks.*.kind=generate", "tasks.*.label=text", "tasks.*.labels={}")


def experiment(file: Path, *overrides: str) -> Experiment:
    settings = reading.read(file, ["tasks.*.test_samples=40", *overrides])
    return build.experiment(settings, build.load_tasks(settings))


def random_vectors(made: Experiment) -> Vectors:
    rng = torch.Generator().manual_seed(0)
    return {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}


def rows_of(values: Vectors, task: int) -> dict[str, Tensor]:
    none = torch.zeros(0)
    return {"global": values["global"][0], "task": values["task"][task], "device": none, "frozen": none}


def levelled(alone: OneDevice, leaves: Leaves, samples: Sequence[Encoded]) -> Leaves:
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
    alone = one_device(request.getfixturevalue(f"tiny_{kind}"), made.fleet, blocks_of("airpfed", 2, 2))
    values["task"][1] = alone.paste(levelled(alone, alone.cut(rows_of(values, 1)), task.test.prompts))["task"]
    found = classify(made.fleet, model_of(made.fleet, values, 1, 2), "test moods", task.test.prompts, task.choices)
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
    factors = model_of(made.fleet, values, 1, 2)
    found = complete(made.fleet, factors, prompts, limit)
    assert found == complete(made.fleet, factors, prompts, limit)
    alone = one_device(tiny_llama, made.fleet, blocks_of("airpfed", 2, 2))
    leaves, tokenizer = alone.cut(rows_of(values, 1)), made.fleet.backbone.tokenizer
    for prompt, text in list(zip(prompts, found, strict=True))[:10]:
        ids = list(prompt)
        for _ in range(limit):
            with torch.no_grad(), alone.hooked(leaves):
                ids.append(int(alone.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert len(set(found)) > 1
    assert complete(made.fleet, None, prompts, limit) != found
