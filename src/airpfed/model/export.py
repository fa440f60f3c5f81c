"""Export of a task's model as a plain PEFT adapter or as merged weights, checked by loading it again."""

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import accumulate
from math import inf, isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from airpfed.core import files
from airpfed.core.errors import UserError, first_line
from airpfed.model import origin
from airpfed.model.backbone import Backbone, empty_model, whole_modules
from airpfed.model.compatibility import auto_class, end_tokens, no_cache_option, set_padding
from airpfed.model.forward import logits, with_adapters
from airpfed.model.layers import StackedLoRA, is_transposed, linear_shape
from airpfed.model.layout import Factors
from airpfed.model.precision import DTYPES, FLOAT32, Precision, is_quantised, set_for_training
from airpfed.model.tokens import Encoding, collate
from airpfed.model.zoo import quiet_transformers

SHARD = r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
"""Names of files of merged weights, whose number may change from export to export."""

TOKENIZER = (
    r"(tokenizer|special_tokens|added_tokens|vocab|merges|spiece|sentencepiece|source|target|chat_template)[\w.-]*"
)
"""Names of files of tokenizers, whose number changes with the version of transformers."""

PREFIX = "base_model.model."
"""PEFT's prefix of layer names."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, between our model and the reloaded export."""


def peft_tensors(backbone: Backbone, factors: Factors, classes: int) -> dict[str, Tensor]:
    """The factors of one model (K = 1) under PEFT's names, with the task's own classes only."""
    tensors: dict[str, Tensor] = {}
    for name in backbone.target_layers:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factors[f"{name}.A"][0]
        tensors[f"{PREFIX}{name}.lora_B.weight"] = factors[f"{name}.B"][0]
    heads = {name: factors[f"{name}.head"][0] for name in backbone.heads}
    if heads:
        last = list(heads)[-1]  # the layer whose rows are classes
        heads[last] = heads[last][:classes]
    for name, weight in heads.items():
        width = linear_shape(backbone.layers[name].base)[1]
        tensors[f"{PREFIX}{name}.weight"] = weight[:, :width]
        if weight.shape[1] > width:
            tensors[f"{PREFIX}{name}.bias"] = weight[:, -1]
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


def peft_names(backbone: Backbone) -> set[str]:
    """The names of `peft_tensors`."""
    names = {f"{PREFIX}{name}.lora_{factor}.weight" for name in backbone.target_layers for factor in "AB"}
    for name in backbone.heads:
        bias = backbone.layers[name].base.bias is not None
        names |= {f"{PREFIX}{name}.{key}" for key in ("weight", "bias")[: 1 + bias]}
    return names


def lora_config(backbone: Backbone, rank: int, alpha: float) -> Any:
    """PEFT's configuration of the adapter: rank R_s + R_p and the set alpha, which give the same scale."""
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=backbone.rslora,
        fan_in_fan_out=any(is_transposed(backbone.layers[name].base) for name in backbone.target_layers),
        target_modules=sorted(backbone.target_layers),
        modules_to_save=saved_modules(backbone) or None,
        task_type=TaskType.CAUSAL_LM if backbone.causal else TaskType.SEQ_CLS,
        base_model_name_or_path=backbone.folder,
        revision=backbone.origin.revision,
        inference_mode=True,
    )
    # PEFT makes a set of it, whose order in the file would differ from process to process.
    config.target_modules = sorted(backbone.target_layers)
    return config


def saved_modules(backbone: Backbone) -> list[str]:
    """The modules that PEFT saves completely: the largest modules that hold head layers and nothing else."""

    def keys(name: str) -> set[str]:
        return {f"{name}.{key}" for key, _ in backbone.meta_model.get_submodule(name).named_parameters()}

    head_keys = {key for name in backbone.heads for key in keys(name)}
    parents = [list(accumulate(name.split("."), "{}.{}".format)) for name in backbone.heads]
    return sorted({next(name for name in names if keys(name) <= head_keys) for names in parents})


def check_adapter(backbone: Backbone, rank: int, alpha: float) -> None:
    """Raise UserError where PEFT does not accept an adapter with these settings, or does not load it completely.

    Needs no training and no weights of the base: an adapter of zeros is written and loaded again.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    config = lora_config(backbone, rank, alpha)
    with quiet_transformers(), warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="airpfed-") as folder:
        warnings.simplefilter("ignore")
        try:
            model = get_peft_model(deepcopy(backbone.meta_model), config, low_cpu_mem_usage=True)
            peft_state = get_peft_model_state_dict(model, save_embedding_layers=False)
            zeros = {key: torch.zeros(tensor.shape) for key, tensor in peft_state.items()}
            config.save_pretrained(folder)
            (Path(folder) / "adapter_model.safetensors").write_bytes(save(zeros, {"format": "pt"}))
            loaded = model.load_adapter(folder, "again", low_cpu_mem_usage=True)
        except Exception as error:  # PEFT and the model's own rules raise many types of exceptions
            raise UserError(f"adapters.target_modules: PEFT refuses them on this base: {first_line(error)}") from None
    names = peft_names(backbone)
    if wrong := sorted(names ^ peft_state.keys()):
        would = "would load no" if wrong[0] in names else "would look for"
        raise UserError(f"model.base: PEFT {would} {wrong[0]} in an adapter of this base, so none can be exported")
    if lost := [*loaded.unexpected_keys, *loaded.missing_keys]:
        raise UserError(
            f"adapters.target_modules: PEFT does not load what it has written for {lost[0]} on this base; leave that "
            "module out"
        )


def write_adapter(backbone: Backbone, factors: Factors, classes: int, alpha: float, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors into a folder."""
    config = lora_config(backbone, next(iter(factors.values())).shape[1], alpha)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    data = save(peft_tensors(backbone, factors, classes), {"format": "pt"})
    files.write_atomic(folder / "adapter_model.safetensors", data)


def fresh_base(backbone: Backbone, classes: int) -> Any:
    """The base model loaded again, as a user of PEFT would load it. Raises UserError where its files have changed."""
    if backbone.origin.identity:
        origin.check_base_unchanged(backbone.origin)
    extra: dict[str, Any] = {} if backbone.causal else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with quiet_transformers(), torch.random.fork_rng():
        config = origin.read_config(backbone.origin, backbone.folder)
        auto = auto_class(config, backbone.causal)
        options = backbone.precision.options(config, str(backbone.device), whole_modules(backbone.meta_model))
        base = auto.from_pretrained(backbone.folder, **options, **backbone.origin.options, **extra)
    for part in (base.config, base.config.get_text_config()):  # a classifier finds the last token by it
        part.pad_token_id = backbone.tokenizer.pad_token_id
    return base


def reload_adapter(base: Any, folder: Path) -> Any:
    """An exported adapter on a base model, loaded by PEFT alone."""
    from peft import PeftModel

    with quiet_transformers():
        model = PeftModel.from_pretrained(base, str(folder)).eval()
    set_for_training(model)  # quantised layers: as they were in the run
    return model


def logit_difference(
    backbone: Backbone, factors: Factors, classes: int, reloaded: Any, samples: Sequence[Encoding]
) -> float:
    """Largest difference of logits between our model and a reloaded model, relative to our largest logit.

    Our logits are computed as in a run, in batches where it uses them; the reloaded model computes one sample at a time
    without padding. Infinite where a logit is not finite.
    """
    batches = [samples] if backbone.paths.batching else [[sample] for sample in samples]
    parts = list[Tensor]()
    with torch.no_grad():
        with with_adapters(backbone, factors):
            for batch_samples in batches:
                batch = collate(batch_samples, backbone.tokenizer.pad_token_id, backbone.paths.pad_left)
                parts.append(logits(backbone, batch.ids, batch.mask, 1)[:, -1].cpu())
        ours = torch.cat(parts)
        option = no_cache_option(backbone.model)
        device = next(reloaded.parameters()).device
        rows = [reloaded(input_ids=torch.tensor([sample.ids], device=device), **option).logits for sample in samples]
        theirs = torch.cat([row[:, -1] if backbone.causal else row for row in rows]).cpu()
    ours = ours if backbone.causal else ours[:, :classes]
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    return difference if isfinite(difference) else inf


def export_adapter(
    backbone: Backbone,
    factors: Factors,
    classes: int,
    alpha: float,
    folder: Path,
    base: Any,
    samples: Sequence[Encoding],
    documents: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Write an adapter, reload it on `base`, and compare the logits on `samples`; returns the reloaded model.

    The tokenizer and `documents`, texts by file name, are written beside it. Raises UserError where the logits differ;
    `folder` then stays as it was.
    """
    with files.replace_folder(folder, TOKENIZER) as work:
        write_adapter(backbone, factors, classes, alpha, work)
        reloaded = reload_adapter(base, work)
        difference = logit_difference(backbone, factors, classes, reloaded, samples)
        check_difference(folder, "the reloaded adapter's", difference, backbone.tolerance)
        write_documents(backbone.tokenizer, documents, work)
    return reloaded


def set_end_tokens(model: Any, ends: Sequence[int]) -> None:
    """Write the tokens that end an answer into a causal LM's generation config, if the base's are not all of them."""
    config = getattr(model, "generation_config", None)
    known = getattr(config, "eos_token_id", None)
    if config is not None and not set(ends) <= set(known if isinstance(known, list | tuple) else [known]):
        config.eos_token_id = list(ends)


def write_documents(tokenizer: Any, documents: Mapping[str, str], folder: Path) -> None:
    """Write a tokenizer and texts by file name into a folder."""
    with quiet_transformers():
        tokenizer.save_pretrained(str(folder))
    for name, text in documents.items():
        files.write_atomic(folder / name, text)


def check_difference(folder: Path, label: str, difference: float, tolerance: float = TOLERANCE) -> None:
    """Raise UserError where a difference of logits exceeds the tolerance. label: the model, in the possessive form."""
    if not isfinite(difference):
        raise UserError(f"{folder}: {label} logits are no numbers, training has diverged; try a smaller server.lr")
    if not difference < tolerance:
        raise UserError(f"{folder}: {label} logits differ by {difference:.1e} (allowed {tolerance:.0e})")


def merge_weights(backbone: Backbone, factors: Factors, classes: int, base: Any) -> Any:
    """Add all changes to the weights of `base`, and return it. For models that no adapter can hold."""
    weights = dict(base.named_parameters())
    with torch.no_grad():
        for name in backbone.target_layers:
            layer = backbone.layers[name]
            assert isinstance(layer, StackedLoRA)
            change = layer.scale * factors[f"{name}.B"][0] @ factors[f"{name}.A"][0] + factors[f"{name}.W"]
            weights[f"{name}.weight"] += (change.T if is_transposed(layer.base) else change).cpu()
        for key, tensor in peft_tensors(backbone, factors, classes).items():
            plain = key.removeprefix(PREFIX)
            if plain in weights:  # heads
                weights[plain].copy_(tensor)
    return base


def merge_adapter(reloaded: Any) -> Any:
    """The base model of a model that PEFT loaded, with the adapter in its weights.

    Raises UserError for a quantised base: merged weights would be rounded anew, so the model would be another one.
    """
    if is_quantised(reloaded.get_base_model()):
        raise UserError(
            "model.quantization: the base is quantised, and merged weights rounded to so few bits would be another "
            "model; serve base and adapter, or merge the adapter into the base's plain weights and score it again"
        )
    with quiet_transformers():
        return reloaded.merge_and_unload()


def export_merged(
    backbone: Backbone,
    factors: Factors,
    model: Any,
    names: Sequence[str],
    samples: Sequence[Encoding],
    folder: Path,
    documents: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write merged weights, load them from the files, and compare the logits on `samples` with those of our model.

    names: the classes of a classifier, which go into its config. The tokenizer and `documents`, texts by file name, are
    written beside them. Raises UserError where the logits differ; `folder` then stays as it was.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForCausalLM if backbone.causal else AutoModelForSequenceClassification
    if not backbone.causal and names:
        set_classes(model.config, names)
    with files.replace_folder(folder, f"{SHARD}|{TOKENIZER}") as work:
        with quiet_transformers():
            model.save_pretrained(str(work))
            write_documents(backbone.tokenizer, documents, work)
            options = {"trust_remote_code": backbone.origin.trusted}
            reloaded = auto.from_pretrained(str(work), dtype=DTYPES[backbone.precision.dtype], **options).eval()
        difference = logit_difference(backbone, factors, len(names), reloaded, samples)
        check_difference(folder, "the merged weights'", difference, backbone.tolerance)


def set_classes(config: Any, names: Sequence[str]) -> None:
    """Give a classifier's config the names of its classes, which transformers shows."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def load_adapter(
    base: str,
    identity: str,
    folder: Path,
    names: Sequence[str] = (),
    trusted: bool = False,
    precision: Precision = FLOAT32,
) -> tuple[Any, Any]:
    """A base model with an exported adapter, ready to answer on the CPU, and its tokenizer.

    base: the setting `model.base`. identity: hash of its files when the adapter was trained. folder: the adapter's.
    names: the classes of a classifier. trusted: whether the base's own Python code may run. precision: how the base's
    weights are held. Raises UserError where the base is not there, is another one, or needs code that is not trusted.
    """
    source = origin.origin_of(base, trusted)
    if source.identity != identity:
        raise UserError(f'{folder}: model.base = "{base}" has other files than when this adapter was trained')
    causal = check_adapter_config(folder) == "CAUSAL_LM"

    def weights(extra: Mapping[str, Any]) -> Any:
        config = origin.read_config(source, base)
        auto = auto_class(config, causal)
        precision.check(base, config)
        empty = None if precision.quantisation == "none" else empty_model(auto, config, source, dict(extra))
        options = precision.options(config, "cpu", whole_modules(empty))
        return auto.from_pretrained(source.folder, **options, **source.options, **extra)

    model, tokenizer = _load(weights, source.folder, source.options, f'model.base = "{base}"', causal, names)
    return reload_adapter(model, folder), tokenizer


def load_merged(folder: Path, causal: bool, names: Sequence[str] = (), trusted: bool = False) -> tuple[Any, Any]:
    """Merged weights, in float32 and ready to answer, and their tokenizer; arguments as in `load_adapter`."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto, options = (
        AutoModelForCausalLM if causal else AutoModelForSequenceClassification,
        {"trust_remote_code": trusted},
    )

    def weights(extra: Mapping[str, Any]) -> Any:
        return auto.from_pretrained(str(folder), dtype=torch.float32, **options, **extra)

    model, tokenizer = _load(weights, str(folder), options, str(folder), causal, names)
    return model.eval(), tokenizer


def _load(
    weights: Callable[[Mapping[str, Any]], Any],
    folder: str,
    options: Mapping[str, Any],
    label: str,
    causal: bool,
    names: Sequence[str],
) -> tuple[Any, Any]:
    """A model ready to answer, and its tokenizer. weights: loads the model. label: what messages call it."""
    from transformers import AutoTokenizer, GenerationConfig

    extra: dict[str, Any] = {} if causal else {"num_labels": len(names) or 1, "ignore_mismatched_sizes": True}
    with quiet_transformers(), torch.random.fork_rng():
        try:
            model = weights(extra)
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except Exception as error:  # transformers raises many types of exceptions
            reason = origin.needs_code(error) or f"cannot be loaded: {first_line(error)}"
            raise UserError(f"{label}: {reason}") from None
    set_padding(tokenizer, model, causal)
    if names and not causal:
        set_classes(model.config, names)
    if causal and hasattr(model, "generation_config"):  # plain greedy decoding, as in a run's scores
        model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            eos_token_id=list(end_tokens(tokenizer, model)) or None,
            pad_token_id=tokenizer.pad_token_id,
        )
    return model, tokenizer


def check_adapter_config(folder: Path) -> str:
    """PEFT's task type of an adapter that may be a stranger's.

    Raises UserError unless it is a LoRA adapter in safetensors that makes PEFT import and compute nothing else.
    """
    file = folder / "adapter_config.json"
    try:
        config = json.loads((files.read_bytes(file) or b"").decode())
        kind, task_type = config["peft_type"], str(config["task_type"])
        others = [key for key in ("megatron_config", "auto_mapping", "eva_config", "corda_config") if config.get(key)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file}: missing or damaged; should be the config of an adapter") from None
    if kind != "LORA" or others:
        raise UserError(f"{file}: should be a plain LoRA adapter, not {others[0] if others else kind}")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder / 'adapter_model.safetensors'}: missing; adapters are read from safetensors only")
    return task_type
