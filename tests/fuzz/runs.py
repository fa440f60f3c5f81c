"""Small runs to damage and to kill, made once; commands of airpfed in this process."""

import contextlib
import io
import itertools
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from airpfed import cli
from tiny import WORDS, make_settings

SMALL = (
    ("rank_shared = 2\nrank_personal = 2", "rank_shared = 1\nrank_personal = 1"),
    ("devices = 3", "devices = 2"),
    ("test_samples = 12", "test_samples = 4"),
    ("dev_samples = 6", "dev_samples = 4"),
    ("samples_per_device = 10", "samples_per_device = 4"),
    ("samples_per_device = 8", "samples_per_device = 4"),
    ("rounds = 4", "rounds = 3"),
    ("[radio]", '[radio]\ndesign = "channel_inversion"'),
    ("coherence_symbols = 100", "coherence_symbols = 5000"),
)
METERED = (
    ("lr = 0.02", 'lr = 0.02\noptimizer = "sgd"'),
    ("[run]", "[theory]\nmeter_every = 2\npilot_rounds = 1\nlanczos_steps = 2\n\n[run]"),
)


def save_llama(folder: Path, layers: int = 2) -> Path:
    """A causal LM with random weights and its tokenizer, small enough for a round in a tenth of a second."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=12, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, eos_token_id=4, bos_token_id=4,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", padding_side="left"
    ).save_pretrained(folder)
    return folder


def save_settings(folder: Path, check_round: bool) -> Path:
    """A settings file of a run that takes a second."""
    file = make_settings(folder, save_llama(folder / "llama"))
    text = file.read_text()
    for old, new in (*SMALL, *(METERED if check_round else ())):
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return file


@dataclass(frozen=True)
class Done:
    """How a command ended. traceback: of what no command may raise."""

    code: int
    out: str
    err: str
    traceback: str = ""


def command(*words: str | Path) -> Done:
    """`airpfed WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    trace, code = "", 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["airpfed", *map(str, words)]),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0
        except BaseException:
            trace = traceback.format_exc()
    return Done(code, out.getvalue(), err.getvalue(), trace)


@contextlib.contextmanager
def stopping_after(rounds: int) -> Iterator[None]:
    """Runs of this process stop after so many rounds, as by Ctrl-C."""

    @contextlib.contextmanager
    def interruptible(_screen: object) -> Iterator[object]:
        asked = itertools.count()
        yield lambda: next(asked) >= rounds

    with mock.patch.object(job, "interruptible", interruptible):
        yield


def good(done: Done) -> Done:
    """The same, if it went well."""
    assert done.code == 0 and not done.traceback, (done.code, done.err, done.traceback)
    return done


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte by byte; where a link points."""
    found = {}
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below) / name
            found[str(path.relative_to(folder))] = (
                str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
            )
    return found


TIMES = ("seconds", "ms")


def timeless(data: bytes) -> object:
    """JSON, or JSON lines, without the wall-clock times in it."""

    def without(tree: object) -> object:
        if isinstance(tree, dict):
            return {key: without(value) for key, value in tree.items() if key not in TIMES}
        return [without(value) for value in tree] if isinstance(tree, list) else tree

    try:
        return without(json.loads(data))
    except ValueError:
        return [without(json.loads(line)) for line in data.splitlines()]
