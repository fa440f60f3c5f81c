"""Prompts, answers and batches: what is cut, what is predicted, where padding goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from airpfed.core.errors import UserError
from airpfed.devices.gradients import sample_losses
from airpfed.model.tokens import IGNORED, Encoding, collate, encode_choices, encode_completion, prompt_ids

PROMPT = "ba be bi bo bu ca ce ci co cu"


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_a_long_prompt_loses_its_middle(tokenizer: Any) -> None:
    whole = prompt_ids(tokenizer, PROMPT, 10)
    assert whole == tuple(tokenizer(PROMPT).input_ids) and len(whole) == 10
    assert prompt_ids(tokenizer, PROMPT, 7) == whole[:5] + whole[-2:]
    assert all(len(prompt_ids(tokenizer, PROMPT, limit)) == limit for limit in range(4, 10))


def test_ids_hold_all_but_the_last_answer_token(tokenizer: Any) -> None:
    sample = encode_completion(tokenizer, "ba be", " ca ce ci", 20)
    answer = tuple(tokenizer("ca ce ci").input_ids)
    assert sample == Encoding(tuple(tokenizer("ba be").input_ids) + answer, (*answer, tokenizer.eos_token_id))


@pytest.mark.parametrize("limit", [4, 5, 8, 12])
def test_a_completion_fits_and_a_long_prompt_makes_room(tokenizer: Any, limit: int) -> None:
    sample = encode_completion(tokenizer, PROMPT, " ca ce ci", limit)
    assert len(sample.ids) == limit
    assert 1 <= len(sample.targets) <= limit // 2
    assert sample.ids[len(sample.ids) - len(sample.targets) + 1 :] == sample.targets[:-1]


@pytest.mark.parametrize("left", [True, False])
def test_targets_end_at_the_last_column_and_ids_are_padded_on_one_side(left: bool) -> None:
    batch = collate([Encoding((5, 6, 7), (8,)), Encoding((9,), (1, 2))], pad=0, left=left)
    assert batch.ids.tolist() == ([[5, 6, 7], [0, 0, 9]] if left else [[5, 6, 7], [9, 0, 0]])
    assert torch.equal(batch.mask, batch.ids != 0)
    assert batch.targets.tolist() == [[IGNORED, 8], [1, 2]]


def test_the_loss_of_completions_is_that_of_a_causal_lm_with_the_prompt_masked(
    tokenizer: Any, tiny_llama: Path
) -> None:
    """Hugging Face shifts labels itself; prompts and answers of several lengths, padded together here only."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    pairs = [("ba be bi", " ca"), ("bo", " ce ci co cu da"), ("bu ca ce ci co", " de di")]
    samples = [encode_completion(tokenizer, prompt, answer, 20) for prompt, answer in pairs]
    batch = collate(samples, tokenizer.pad_token_id, left=True)
    with torch.no_grad():
        positions = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        out = model(input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=positions).logits
        found = sample_losses(out[:, -batch.targets.shape[1] :], batch.targets)
        for sample, loss in zip(samples, found, strict=True):
            full = torch.tensor([[*sample.ids, sample.targets[-1]]])
            labels = full.clone()
            labels[:, : full.shape[1] - len(sample.targets)] = IGNORED
            wanted = model(input_ids=full, labels=labels).loss
            torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)


def test_label_words_give_their_first_tokens(tokenizer: Any) -> None:
    prompts, words = encode_choices(tokenizer, ["ba :", "be bi :"], (" good", " bad it"), "x")
    assert words == tuple(tokenizer("good bad").input_ids)
    assert prompts == [tuple(tokenizer(text).input_ids) for text in ("ba :", "be bi :")]


def test_label_words_that_start_alike_are_refused(tokenizer: Any) -> None:
    expected = (
        r"^tasks\.x\.labels: label word ' good it' and ' good' start with the same token; set words here that differ"
    )
    with pytest.raises(UserError, match=expected):
        encode_choices(tokenizer, ["ba :"], (" good", " good it"), "x")
    with pytest.raises(UserError, match="has no token"):
        encode_choices(tokenizer, ["ba :"], (" good", " "), "x")
