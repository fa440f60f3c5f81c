"""Adapters for llama.cpp: names, shapes and the order of rows are llama.cpp's, and its logits are PEFT's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.experiment import artifacts
from airpfed.model import gguf_adapter
from airpfed.model.backbone import Backbone
from airpfed.model.export import export_adapter
from airpfed.model.layout import Factors
from airpfed.model.tokens import Encoding
from airpfed.training.evaluate import model_of
from support.experiments import experiment_of, random_vectors

RANKS = ("adapters.rank_shared=2", "adapters.rank_personal=1", "adapters.alpha=6")
MODULES = 'adapters.target_modules=["q_proj","k_proj","v_proj","o_proj","down_proj"]'


def factors_on(file: Path) -> tuple[Backbone, Factors]:
    """A base of two heads for keys and four for queries, and random factors for it."""
    setup = experiment_of(settings_file.read_settings(file, [*RANKS, MODULES]))
    return setup.clients.backbone, model_of(setup.clients, random_vectors(setup), 0, 0)


def contents(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(str(file))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_the_file_is_what_llama_cpp_reads(small_settings: Path, tmp_path: Path) -> None:
    backbone, factors = factors_on(small_settings)
    gguf_adapter.write_gguf_adapter(backbone, factors, tmp_path / "a" / "x.gguf")
    fields, tensors = contents(tmp_path / "a" / "x.gguf")
    assert fields == {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0,
    }  # fmt: skip
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    for name in backbone.target_layers:
        layer, module = name.split(".")[2], name.rpartition(".")[2]
        key = f"blk.{layer}.{names.get(module, 'ffn_down')}.weight"
        a, b = factors[f"{name}.A"][0].numpy(), factors[f"{name}.B"][0].numpy()
        assert np.array_equal(tensors.pop(f"{key}.lora_a"), a)
        rows = tensors.pop(f"{key}.lora_b")
        if module in ("q_proj", "k_proj"):
            heads = 4 if module == "q_proj" else 2
            back = LlamaTensorProcessor()._reverse_permute_weights(rows, 4, None if heads == 4 else heads)
            assert np.array_equal(back, b) and not np.array_equal(rows, b), "as transformers reads llama.cpp's files"
        else:
            assert np.array_equal(rows, b)
    assert not tensors


def test_rows_of_a_rotary_pair_stand_together() -> None:
    rows = torch.arange(8.0)[:, None]
    assert gguf_adapter.rotary_pairs(rows, 1).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert gguf_adapter.rotary_pairs(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_every_family_is_one_of_llama_cpp() -> None:
    for model in gguf_adapter.MODELS.values():
        names = gguf_adapter._names(model, 2)
        assert any(
            names.get_name(f"{stack}.{name}")
            for stack in ("model.layers.0", "transformer.h.0")
            for name in ("self_attn.q_proj", "self_attn.qkv_proj", "attn.c_attn")
        ), model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"causal": False}, "a classifier with a head of its own"),
        ({"model_type": "mamba"}, 'of type "mamba"; adapters are written for llama, mistral'),
        ({"target_layers": {"model.layers.0.mixer": (4, 4)}}, "no matrix for model.layers.0.mixer"),
    ],
)
def test_what_llama_cpp_cannot_take_is_one_line(
    change: dict[str, Any], words: str, small_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, _ = factors_on(small_settings)
    if kind := change.pop("model_type", None):
        monkeypatch.setattr(backbone.model.config, "model_type", kind)
    with pytest.raises(UserError, match=words) as caught:
        gguf_adapter.check_base(replace(backbone, **change))
    assert "\n" not in str(caught.value)


def save_base(base: Any, file: Path) -> None:
    """The weights of a small Llama as a GGUF file without a vocabulary, as llama.cpp's converter lays them out."""
    config = base.config
    writer = gguf.GGUFWriter(str(file), "llama")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, weight in base.state_dict().items():
        name = names.get_name(key, try_suffixes=(".weight",))
        count = {"attn_q": heads, "attn_k": groups}.get(name.split(".")[-2])
        array = weight.numpy()
        if count:
            half = weight.shape[0] // count // 2
            array = array.reshape(count, 2, half, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_logits(base: Path, adapter: Path | None, ids: Sequence[int]) -> np.ndarray:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(base), lora_path=str(adapter) if adapter else None, n_ctx=64, n_threads=1, logits_all=True, verbose=False,
        type_k=0, type_v=0, flash_attn=False,
    )  # fmt: skip
    model.eval(list(ids))
    return np.array(model.scores[: len(ids)])


def test_llama_cpps_logits_are_pefts(small_settings: Path, tmp_path: Path) -> None:
    """Base and cache in float32. Needs llama-cpp-python."""
    pytest.importorskip("llama_cpp")
    backbone, factors = factors_on(small_settings)
    ids = [20, 21, 33, 45, 60, 18, 5, 6]
    base = AutoModelForCausalLM.from_pretrained(backbone.folder, dtype=torch.float32).eval()
    save_base(base, tmp_path / "base.gguf")
    gguf_adapter.write_gguf_adapter(backbone, factors, tmp_path / "a.gguf")
    peft = export_adapter(backbone, factors, 0, 6.0, tmp_path / "peft", base, [Encoding(tuple(ids), (0,))])
    with torch.no_grad():
        ours = peft(input_ids=torch.tensor([ids])).logits[0].numpy()
    theirs = llama_cpp_logits(tmp_path / "base.gguf", tmp_path / "a.gguf", ids)
    without = llama_cpp_logits(tmp_path / "base.gguf", None, ids)
    scale = np.abs(ours).max()
    assert np.abs(theirs - ours).max() < 1e-4 * scale
    assert np.abs(without - ours).max() > 1e-2 * scale, "the adapter does something"


def test_export_writes_a_file_a_model(small_settings: Path, tmp_path: Path) -> None:
    """Also where each device has its own; and no other file is lost."""
    for method, names in (("airpfed", ["colours", "moods"]), ("fedsa", ["colours/device-0", "moods/device-4"])):
        settings = settings_file.read_settings(small_settings, [f"adapters.method={method}", "adapters.layers=last-1"])
        setup = experiment_of(settings)
        out = tmp_path / method
        artifacts.export_adapters(settings, setup, setup.initial, out, merged=False, gguf=True)
        assert all((out / "gguf" / f"{name}.gguf").is_file() for name in names)
        assert json.loads((out / "adapters" / names[0] / "task.json").read_text())["name"] == "colours"
