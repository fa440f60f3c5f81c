"""LoRA adapters in GGUF, the format of llama.cpp (`--lora`).

A file has `general.type = "adapter"`, `adapter.type = "lora"`, `adapter.lora.alpha`, the base's `general.architecture`,
and for each adapted matrix `NAME.lora_a` (rank, in) and `NAME.lora_b` (out, rank) under llama.cpp's name of the matrix,
for example `blk.0.attn_q.weight`. llama.cpp adds alpha / rank times lora_b lora_a.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from airpfed.core import files
from airpfed.core.errors import UserError
from airpfed.model.backbone import Backbone
from airpfed.model.layers import StackedLoRA
from airpfed.model.layout import Factors


@dataclass(frozen=True)
class LlamaCppModel:
    """A family of models as llama.cpp knows it.

    architecture: its `general.architecture`. pairs: whether it keeps the two rows of each rotary pair next to each
    other in the query's and key's matrices; transformers keeps them half a head apart.
    """

    architecture: str
    pairs: bool = False


MODELS: Mapping[str, LlamaCppModel] = MappingProxyType(
    {
        "llama": LlamaCppModel("llama", pairs=True),
        "mistral": LlamaCppModel("llama", pairs=True),
        "mixtral": LlamaCppModel("llama", pairs=True),
        "granite": LlamaCppModel("granite", pairs=True),
        "granitemoe": LlamaCppModel("granitemoe", pairs=True),
        "olmo": LlamaCppModel("olmo", pairs=True),
        "smollm3": LlamaCppModel("smollm3", pairs=True),
        "arcee": LlamaCppModel("arcee", pairs=True),
        "qwen2": LlamaCppModel("qwen2"),
        "qwen2_moe": LlamaCppModel("qwen2moe"),
        "qwen3": LlamaCppModel("qwen3"),
        "qwen3_moe": LlamaCppModel("qwen3moe"),
        "gemma": LlamaCppModel("gemma"),
        "gemma2": LlamaCppModel("gemma2"),
        "gemma3_text": LlamaCppModel("gemma3"),
        "phi": LlamaCppModel("phi2"),
        "phi3": LlamaCppModel("phi3"),
        "olmo2": LlamaCppModel("olmo2"),
        "olmo3": LlamaCppModel("olmo2"),
        "olmoe": LlamaCppModel("olmoe"),
        "starcoder2": LlamaCppModel("starcoder2"),
        "gpt_bigcode": LlamaCppModel("starcoder"),
        "stablelm": LlamaCppModel("stablelm"),
        "cohere": LlamaCppModel("command-r"),
        "cohere2": LlamaCppModel("cohere2"),
        "nemotron": LlamaCppModel("nemotron"),
        "exaone4": LlamaCppModel("exaone4"),
        "glm": LlamaCppModel("chatglm"),
        "glm4": LlamaCppModel("glm4"),
        "ernie4_5": LlamaCppModel("ernie4_5"),
        "apertus": LlamaCppModel("apertus"),
        "seed_oss": LlamaCppModel("seed_oss"),
        "hunyuan_v1_dense": LlamaCppModel("hunyuan-dense"),
    }
)
"""`model_type` of transformers -> the family in llama.cpp.

Each row gives, bit by bit, the tensors of llama.cpp's own convert_lora_to_gguf.py (that of llama-cpp-python 0.3.36) for
adapters on all linear layers of a small model. Families whose matrices llama.cpp rearranges in other ways have no row.
"""


def check_base(backbone: Backbone) -> LlamaCppModel:
    """The family of a base model. Raises UserError where adapters on it cannot be written for llama.cpp."""
    kind = str(backbone.model.config.model_type)
    if not backbone.causal:
        raise UserError("--gguf: the base is a classifier with a head of its own, and llama.cpp adapters have no heads")
    if kind not in MODELS:
        raise UserError(
            f'--gguf: the base is of type "{kind}"; adapters are written for {", ".join(MODELS)}. llama.cpp\'s '
            "convert_lora_to_gguf.py reads the PEFT adapters of other bases"
        )
    names = _names(MODELS[kind], backbone.model.config.num_hidden_layers)
    for name in backbone.target_layers:
        if names.get_name(name) is None:
            raise UserError(f'--gguf: llama.cpp has no matrix for {name} of a base of type "{kind}"')
    return MODELS[kind]


def write_gguf_adapter(backbone: Backbone, factors: Factors, file: Path) -> None:
    """Write the factors of one model (K = 1) as a GGUF file, whole or not at all. Raises UserError as `check_base`."""
    model, config = check_base(backbone), backbone.model.config
    names = _names(model, config.num_hidden_layers)
    scales, tensors = set[float](), dict[str, Tensor]()
    for name in backbone.target_layers:
        layer = backbone.layers[name]
        assert isinstance(layer, StackedLoRA)
        a, b = (factors[f"{name}.{factor}"][0].detach().float().cpu() for factor in "AB")
        scales.add(float(layer.scale) * a.shape[0])
        target = names.get_name(name)
        heads = heads_of(target, config)
        if model.pairs and heads:
            b = rotary_pairs(b, heads)
        tensors |= {f"{target}.weight.lora_a": a, f"{target}.weight.lora_b": b}
    (alpha,) = scales
    with tempfile.TemporaryDirectory(prefix="airpfed-") as folder:
        write_file(Path(folder) / "adapter.gguf", model.architecture, alpha, tensors)
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(file, (Path(folder) / "adapter.gguf").read_bytes())


def write_file(file: Path, architecture: str, alpha: float, tensors: Mapping[str, Tensor]) -> None:
    """Write a GGUF file of a LoRA adapter. tensors: float32, under llama.cpp's names."""
    import gguf

    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def heads_of(name: str, config: Any) -> int:
    """Heads of a query's or key's matrix under llama.cpp's name; 0 for other matrices."""
    kind = name.rpartition(".")[2]
    if kind == "attn_q":
        return int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads) if kind == "attn_k" else 0


def rotary_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rows (out, rank) with the two rows of each rotary pair next to each other, head by head.

    In: rows i and i + n / 2 of a head of n rows are a pair. Out: rows 2 i and 2 i + 1.
    """
    return rows.view(heads, 2, rows.shape[0] // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _names(model: LlamaCppModel, layers: int) -> Any:
    """The map of the gguf package from transformers' names of matrices to llama.cpp's."""
    import gguf

    (arch,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == model.architecture)
    return gguf.get_tensor_name_map(arch, layers)
