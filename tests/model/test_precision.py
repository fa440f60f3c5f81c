"""Bases whose weights are held otherwise: PEFT's gradient on the same base, rules told, and nothing else moved."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from airpfed.core.errors import UserError
from airpfed.core.rng import stream
from airpfed.model import backbone, export, layout
from airpfed.model.backbone import Backbone, FastPaths
from airpfed.model.forward import logits, with_adapters
from airpfed.model.layers import OutputLayer, StackedHead, StackedLoRA, linear_shape, plain_matrix, weight_norm
from airpfed.model.layout import Factors
from airpfed.model.methods import blocks_of
from airpfed.model.precision import QUANTISATIONS, Precision, in_float32, is_coarse, set_for_training
from airpfed.model.tokens import Encoding, collate
from support.models import save_llama, save_tokenizer, sizes

IDS = [20, 21, 22, 23, 24, 25]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1}
"""Rounding of sums, and of products in bfloat16 through four layers."""


def installed(name: str) -> bool:
    return importlib.util.find_spec(QUANTISATIONS[name].package) is not None


def params(*names: str) -> list[Any]:
    return [
        pytest.param(n, marks=pytest.mark.skipif(n != "none" and not installed(n), reason="no package")) for n in names
    ]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(
        tmp_path_factory.mktemp("held") / "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2
    )


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held") / "gpt2"
    torch.manual_seed(0)
    size = sizes(num_hidden_layers=2)
    config = hf.GPT2Config(vocab_size=size["vocab_size"], n_embd=64, n_layer=2, n_head=4, n_positions=64,
                           pad_token_id=0, bos_token_id=4, eos_token_id=4)  # fmt: skip
    hf.GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def built(folder: Path, targets: Sequence[str] | str, layers: str = "all", **options: Any) -> Backbone:
    return backbone.build_backbone(str(folder), "auto", 3, targets, layers, 2.0, "cpu", stream(0, "head"), **options)


def factors_of(base: Backbone) -> Factors:
    """Random factors of one device."""
    order = layout.arrange_layout(base.target_layers, blocks_of("airpfed", 2, 2), {}, (0,))
    values = layout.initial_vectors(order, {}, stream(0, "adapters"))
    zeros = torch.zeros(1, dtype=torch.long)
    rng = torch.Generator().manual_seed(0)
    start = layout.gather(values, order, zeros, zeros)
    return {key: 0.1 * torch.randn(value.shape, generator=rng) for key, value in sorted(start.items())}


def our_gradient(base: Backbone, factors: Factors) -> tuple[Tensor, Factors]:
    """Logits of one sample's last two tokens, and the gradient of the first logits' squares."""
    leaves = {key: value.clone().requires_grad_() for key, value in factors.items()}
    batch = collate([Encoding(tuple(IDS), (0,))], 0, True)
    with with_adapters(base, leaves):
        scores = logits(base, batch.ids, batch.mask, 2)[0]
    found = torch.autograd.grad(scores.float().square().sum(), list(leaves.values()))
    return scores.detach(), dict(zip(leaves, found, strict=True))


def peft_gradient(base: Backbone, factors: Factors, alpha: float) -> tuple[Tensor, Factors]:
    """The same by PEFT, on a base of its own; its adapter comes from our export's files."""
    import peft

    config = export.lora_config(base, 4, alpha)
    config.inference_mode = False
    plain = export.fresh_base(base, 0)
    set_for_training(plain)
    model = peft.get_peft_model(plain, config)
    parts: dict[str, Any] = {}
    with torch.no_grad():
        for key, value in factors.items():
            layer, _, kind = key.rpartition(".")
            parts[key] = getattr(model.base_model.model.get_submodule(layer), f"lora_{kind}")["default"].weight
            parts[key].copy_(value[0])
    model.eval()
    set_for_training(model)
    scores = model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -2:]
    scores.float().square().sum().backward()
    return scores.detach(), {key: part.grad[None] for key, part in parts.items()}


def difference(ours: Factors, theirs: Factors) -> float:
    a, b = (torch.cat([parts[key].flatten().double() for key in sorted(parts)]) for parts in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantisation", params("none", *QUANTISATIONS))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_and_gradients_are_pefts_on_the_same_base(
    family: str, quantisation: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    if (family, quantisation) == ("gpt2", "torchao_int8"):
        pytest.skip("torchao leaves Conv1D alone, and a test below says so")
    folder = request.getfixturevalue(family)
    targets = ("q_proj", "down_proj") if family == "llama" else ("c_attn", "mlp.c_proj")
    base = built(folder, targets, precision=Precision(dtype, quantisation), rslora=True)
    assert base.has_quantised_weights == (quantisation != "none") and base.coarse == (dtype == "bfloat16")
    factors = factors_of(base)
    scores, gradient = our_gradient(base, factors)
    right_scores, right = peft_gradient(base, factors, alpha=4.0)  # 4 / sqrt(4) is the scale
    assert difference(gradient, right) < TOLERANCE[dtype]
    assert float((scores - right_scores).abs().max() / right_scores.abs().max()) < TOLERANCE[dtype]
    assert all(value.dtype == torch.float32 for value in gradient.values())
    _, plain_gradient = our_gradient(built(folder, targets), factors)
    if (quantisation, dtype) != ("none", "float32"):
        assert difference(gradient, plain_gradient) > 1e-4, "the base is held as in float32"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fused_layer_is_the_unfused_one(family: str, request: pytest.FixtureRequest) -> None:
    targets = ("q_proj", "down_proj") if family == "llama" else ("c_attn", "c_proj", "c_fc")
    base = built(request.getfixturevalue(family), targets)
    factors = factors_of(base)
    plain_scores, plain = our_gradient(base, factors)
    scores, gradient = our_gradient(base.with_paths(FastPaths(fused=True)), factors)
    torch.testing.assert_close(scores, plain_scores, rtol=1e-5, atol=1e-6)
    assert difference(gradient, plain) < 1e-5
    assert all(plain_matrix(layer.base) is not None for layer in base.layers.values())


def test_shapes_are_outputs_by_inputs_however_a_weight_is_stored(gpt2: Path, llama: Path) -> None:
    assert built(gpt2, ("c_fc",), "last-1").target_layers == {"transformer.h.1.mlp.c_fc": (256, 64)}
    assert built(llama, ("down_proj",), "last-1").target_layers == {"model.layers.1.mlp.down_proj": (64, 96)}


@pytest.mark.parametrize("quantisation", params("nf4", "int8", "torchao_int8"))
def test_an_exported_adapter_of_a_quantised_base_gives_its_logits(
    quantisation: str, llama: Path, tmp_path: Path
) -> None:
    base = built(llama, ("q_proj", "down_proj"), precision=Precision(quantisation=quantisation))
    export.check_adapter(base, 4, 8.0)
    factors, samples = factors_of(base), [Encoding(tuple(IDS), (0,))]
    folder = tmp_path / "adapter"
    fresh = export.fresh_base(base, 0)
    reloaded = export.export_adapter(base, factors, 0, 8.0, folder, fresh, samples)
    with pytest.raises(UserError, match="the base is quantised"):
        export.merge_adapter(reloaded)
    loaded, _ = export.load_adapter(str(llama), base.origin.identity, folder, precision=base.precision)
    with torch.no_grad():
        theirs = loaded(input_ids=torch.tensor([IDS])).logits[0, -2:]
    scores, _ = our_gradient(base, factors)
    torch.testing.assert_close(scores, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("quantisation", params("nf4", "int8"))
def test_replicas_share_quantised_weights_and_passes_leave_them_alone(quantisation: str, llama: Path) -> None:
    base = built(llama, ("q_proj",), precision=Precision(quantisation=quantisation))
    factors = factors_of(base)
    first, _ = our_gradient(base, factors)
    with torch.no_grad():  # without a gradient, bitsandbytes packs weights anew on some CPUs
        base.model(input_ids=torch.tensor([IDS]))
    twin = base.replicas(2)[1]
    bases: list[Any] = [one.layers["model.layers.1.self_attn.q_proj"].base for one in (base, twin)]
    layer, copied = bases
    assert layer is not copied and layer.weight.data_ptr() == copied.weight.data_ptr()
    if quantisation == "int8":
        assert layer.state.CB.data_ptr() == copied.state.CB.data_ptr()
    assert torch.equal(our_gradient(twin, factors)[0], first)


@pytest.mark.parametrize("quantisation", params("nf4"))
def test_a_weights_norm_is_estimated_from_its_products(quantisation: str, llama: Path) -> None:
    base = built(llama, ("down_proj",), "last-1", precision=Precision(quantisation=quantisation))
    exact = weight_norm(built(llama, ("down_proj",), "last-1").layers["model.layers.1.mlp.down_proj"].base,
                        torch.float32, stream(0, "x"))  # fmt: skip
    found = weight_norm(base.layers["model.layers.1.mlp.down_proj"].base, torch.float32, stream(0, "x"))
    assert 0.8 < found / exact < 1.25 and found != exact  # 32 draws: 5 standard errors are 15 %; nf4: some percent


@pytest.mark.parametrize("quantisation", params("nf4"))
def test_a_quantised_base_is_not_quantised_again_and_needs_no_setting(
    quantisation: str, llama: Path, tmp_path: Path
) -> None:
    config = QUANTISATIONS[quantisation].config(torch.float32, ["lm_head"])
    stored = hf.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, quantization_config=config)
    stored.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    base = built(tmp_path, ("q_proj",))
    assert base.has_quantised_weights and not base.coarse
    export.check_adapter(base, 4, 8.0)
    factors = factors_of(base)
    scores, gradient = our_gradient(base, factors)
    same, same_gradient = our_gradient(built(llama, ("q_proj",), precision=Precision("float32", quantisation)), factors)
    torch.testing.assert_close(scores, same, rtol=1e-5, atol=1e-6)
    assert difference(gradient, same_gradient) < 1e-5
    with pytest.raises(UserError, match="is quantised already; leave the setting out"):
        built(tmp_path, ("q_proj",), precision=Precision("float32", quantisation))


@pytest.mark.parametrize("quantisation", params("torchao_int8"))
def test_a_quantisation_that_finds_no_layer_is_refused(quantisation: str, gpt2: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f'model.quantization = "{quantisation}": finds no layer')):
        built(gpt2, ("c_attn",), precision=Precision("float32", quantisation))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpfed.model.precision.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes \(pip install 'airpfed\[quantised\]'\)"):
        Precision(quantisation="nf4").check("base", None)
    Precision().check("base", None)


def test_what_is_rounded_to_few_digits_is_coarse() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not is_coarse(model) and not is_coarse(model.double())
    model[1].bfloat16()
    assert is_coarse(model)
    assert linear_shape(nn.Linear(3, 5)) == (5, 3)


@pytest.mark.parametrize("memory", [1e12, 1.0])
def test_a_narrow_model_is_in_float32_for_a_while_if_it_fits(memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpfed.model.precision.available_memory", lambda: memory)
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.LayerNorm(2))
    model.register_buffer("table", torch.randn(3).half())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(KeyError), in_float32(model) as fits:
        assert fits == (memory > 1)
        assert is_coarse(model) != fits and (model.table.dtype == torch.float32) == fits
        raise KeyError
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])


def test_a_narrow_type_that_holds_no_plain_numbers_is_left_alone() -> None:
    class Packed(torch.Tensor):
        """Four-bit numbers in the bytes of bfloat16, say."""

    model = nn.Linear(2, 2).bfloat16()
    model.register_buffer("packed", torch.zeros(3, dtype=torch.bfloat16).as_subclass(Packed))
    with in_float32(model) as fits:
        assert not fits and model.weight.dtype == torch.bfloat16


def test_an_exports_config_tells_how_weights_lie_and_adapters_are_scaled(gpt2: Path, llama: Path) -> None:
    transposed = export.lora_config(built(gpt2, ("c_fc",), rslora=True), 4, 8.0)
    plain = export.lora_config(built(llama, ("q_proj",)), 4, 8.0)
    assert (transposed.fan_in_fan_out, transposed.use_rslora) == (True, True)
    assert (plain.fan_in_fan_out, plain.use_rslora) == (False, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_frozen_layers_get_slices_of_narrow_numbers_as_copies(dtype: torch.dtype) -> None:
    """torch multiplies slices of bfloat16 by slow code; float32 is left as it is, to the bit."""
    seen: list[bool] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous())
            return super().forward(x)

    base = Watched(8, 4).to(dtype).requires_grad_(False)
    adapted = StackedLoRA(base, 1.0)
    adapted.a, adapted.b = torch.randn(1, 2, 8), torch.randn(1, 4, 2)
    x = torch.randn(3, 5, 8).to(dtype)[:, -2:]
    for layer in (OutputLayer(base), StackedHead(base), StackedLoRA(base, 1.0), adapted):
        whole = layer(x.contiguous())
        assert torch.allclose(layer(x).float(), whole.float(), atol=1e-2)
    assert seen == [True, dtype == torch.bfloat16] * 4
