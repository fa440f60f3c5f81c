"""Classes whose words begin alike are learnt over the air, token by token."""

import json
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import airpfed as ap
from support.tokenizers import real

PHRASES = {
    "New York": ["brooklyn bridge", "the yankees", "broadway shows", "central park"],
    "New Delhi": ["india gate", "the rupee", "red fort", "lodhi gardens"],
    "0": ["five minus five", "nothing left", "an empty set", "no apples"],
    "1": ["two minus one", "a single apple", "the only child", "half of two"],
    "good": ["a fine film", "great work", "lovely meal", "well done"],
    "good enough": ["it will do", "passable I guess", "meets the minimum", "could be worse"],
}


def test_classes_that_begin_alike_are_learnt_over_the_air(tmp_path: Path) -> None:
    """A Llama with a SentencePiece tokenizer of its family, to which the words of these classes are two tokens each."""
    made = real("tokenizer.model.v1", tmp_path / "base")
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), eos_token_id=2, bos_token_id=1, pad_token_id=0, **size))
    model.lm_head.weight.data *= 20  # as drawn it could not say anything with conviction
    model.save_pretrained(tmp_path / "base")
    rng = random.Random(0)
    rows = {", ".join(rng.sample(PHRASES[name], 3)): name for _ in range(40) for name in PHRASES}
    items = rng.sample(sorted(rows.items()), len(rows))
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": text, "label": name}) for text, name in items))
    task = {"name": "cities", "source": str(tmp_path / "x.jsonl"), "devices": 2, "samples_per_device": 32}
    task |= {"dev_samples": 0, "test_samples": 36}
    tree = {"model": {"base": str(tmp_path / "base")}, "tasks": [task], "devices": {"batch_size": 16}}
    tree |= {"server": {"rounds": 60, "lr": 0.04}, "radio": {"snr_db": 15.0}, "run": {"threads": 1}}
    experiment = ap.Experiment.from_dict(tree)
    assert sorted(map(len, experiment.setup.tasks[0].words)) == [2, 2, 2, 2, 2, 2]
    result = experiment.run(tmp_path / "run").summary.tasks["cities"]
    assert result.base < 0.5 and result.final is not None and result.final > 0.8
