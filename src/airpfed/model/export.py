"""A task's model as a plain PEFT adapter, checked by loading it with PEFT alone."""

import tempfile
import warnings
from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from airpfed.core import files
from airpfed.core.errors import UserError
from airpfed.model import fit, origin, zoo
from airpfed.model.adapters import StackedLoRA
from airpfed.model.backbone import Backbone
from airpfed.model.forward import adapted, logits
from airpfed.model.layout import Factors
from airpfed.model.tokens import Encoded, collate

SHARD = r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
"""Files of merged weights, which may be cut into more pieces or fewer."""

PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's layers."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, between our model and the reloaded export."""


def peft_tensors(backbone: Backbone, factors: Factors, classes: int) -> dict[str, Tensor]:
    """The factors of one model (K = 1) under PEFT's names; heads cut to a task's own classes."""
    tensors: dict[str, Tensor] = {}
    for name in backbone.sites:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factors[f"{name}.A"][0]
        tensors[f"{PREFIX}{name}.lora_B.weight"] = factors[f"{name}.B"][0]
    for name, weight in head_rows(backbone, factors, classes).items():
        width = backbone.layers[name].base.in_features
        tensors[f"{PREFIX}{name}.weight"] = weight[:, :width]
        if weight.shape[1] > width:
            tensors[f"{PREFIX}{name}.bias"] = weight[:, -1]
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


def peft_names(backbone: Backbone) -> set[str]:
    """The names that `peft_tensors` gives."""
    found = {f"{PREFIX}{name}.lora_{factor}.weight" for name in backbone.sites for factor in "AB"}
    for name in backbone.heads:
        bias = backbone.layers[name].base.bias is not None
        found |= {f"{PREFIX}{name}.{key}" for key in ("weight", "bias")[: 1 + bias]}
    return found


def head_rows(backbone: Backbone, factors: Factors, classes: int) -> dict[str, Tensor]:
    """Head weights of one model; the layer whose rows are classes (the last) keeps the task's own."""
    heads = {name: factors[f"{name}.head"][0] for name in backbone.heads}
    if heads:
        last = list(heads)[-1]
        heads[last] = heads[last][:classes]
    return heads


def lora_config(backbone: Backbone, rank: int, alpha: float) -> Any:
    """The adapter's configuration as PEFT has it: rank R_s + R_p and alpha as set give the same scale."""
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(backbone.sites),
        modules_to_save=saved_modules(backbone) or None,
        task_type=TaskType.CAUSAL_LM if backbone.causal else TaskType.SEQ_CLS,
        base_model_name_or_path=backbone.folder,
        revision=backbone.origin.revision,
        inference_mode=True,
    )
    config.target_modules = sorted(backbone.sites)  # PEFT makes it a set, written in another order by every process
    return config


def saved_modules(backbone: Backbone) -> list[str]:
    """The modules that PEFT saves whole: the largest that hold head layers and nothing else."""
    blank = backbone.blank

    def keys(name: str) -> set[str]:
        return {f"{name}.{key}" for key, _ in blank.get_submodule(name).named_parameters()}

    ours = {key for name in backbone.heads for key in keys(name)}
    around = [list(accumulate(name.split("."), "{}.{}".format)) for name in backbone.heads]
    return sorted({next(one for one in names if keys(one) <= ours) for names in around})


def acceptable(backbone: Backbone, rank: int, alpha: float) -> None:
    """UserError where PEFT would not take an adapter as these settings make it, or would not give it back.

    Found without a step of training and without the base's weights: an adapter is written, and loaded beside it.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    config = lora_config(backbone, rank, alpha)
    with zoo.quiet(), warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="airpfed-") as folder:
        warnings.simplefilter("ignore")
        try:
            model = get_peft_model(deepcopy(backbone.blank), config, low_cpu_mem_usage=True)
            theirs = get_peft_model_state_dict(model, save_embedding_layers=False)
            sent = {key: torch.zeros(one.shape) for key, one in theirs.items()}
            config.save_pretrained(folder)
            (Path(folder) / "adapter_model.safetensors").write_bytes(save(sent, {"format": "pt"}))
            loaded = model.load_adapter(folder, "again", low_cpu_mem_usage=True)
        except Exception as error:  # whatever PEFT or a model's own rules refuse
            raise UserError(
                f"adapters.target_modules: PEFT refuses them on this base: {zoo.first_line(error)}"
            ) from None
    ours = peft_names(backbone)
    if wrong := sorted(ours ^ theirs.keys()):
        would = "would load no" if wrong[0] in ours else "would look for"
        raise UserError(f"model.base: PEFT {would} {wrong[0]} in an adapter of this base, so none can be exported")
    if lost := [*loaded.unexpected_keys, *loaded.missing_keys]:
        raise UserError(
            f"adapters.target_modules: PEFT does not load what it has written for {lost[0]} on this base; leave that "
            "module out"
        )


def write(backbone: Backbone, factors: Factors, classes: int, alpha: float, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors into a folder."""
    config = lora_config(backbone, next(iter(factors.values())).shape[1], alpha)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    data = save(peft_tensors(backbone, factors, classes), {"format": "pt"})
    files.write_atomic(folder / "adapter_model.safetensors", data)


def fresh_base(backbone: Backbone, classes: int) -> Any:
    """The base model loaded anew, as a user of PEFT would. UserError where it is no longer what was trained on."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if backbone.origin.identity:
        origin.same(backbone.origin)
    auto = AutoModelForCausalLM if backbone.causal else AutoModelForSequenceClassification
    extra: dict[str, Any] = {} if backbone.causal else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with zoo.quiet(), torch.random.fork_rng():
        base = auto.from_pretrained(backbone.folder, dtype=torch.float32, **backbone.origin.options, **extra)
    base.config.pad_token_id = backbone.tokenizer.pad_token_id  # by it a classifier finds the last token
    return base


def reload(base: Any, folder: Path) -> Any:
    """An exported adapter on a base model, by PEFT alone."""
    from peft import PeftModel

    with zoo.quiet():
        return PeftModel.from_pretrained(base, str(folder)).eval()


def difference(backbone: Backbone, factors: Factors, classes: int, reloaded: Any, samples: Sequence[Encoded]) -> float:
    """Largest difference of logits on `samples` between our model and a reloaded one, relative to the largest logit.

    Ours computes them as in a run, together if need be; the other one by one, without any padding. Infinite where one
    is no number.
    """
    batches = [samples] if backbone.paths.batching else [[one] for one in samples]
    found = list[Tensor]()
    with torch.no_grad():
        with adapted(backbone, factors):
            for some in batches:
                batch = collate(some, backbone.tokenizer.pad_token_id, backbone.paths.left)
                found.append(logits(backbone, batch.ids, batch.mask, 1)[:, -1].cpu())
        ours = torch.cat(found)
        plainly = fit.uncached(backbone.model)
        rows = [reloaded(input_ids=torch.tensor([one.ids]), **plainly).logits for one in samples]
        theirs = torch.cat([row[:, -1] if backbone.causal else row for row in rows])
    ours = ours if backbone.causal else ours[:, :classes]
    gap = float((ours - theirs).abs().max() / ours.abs().max())
    return gap if isfinite(gap) else inf


def checked(backbone: Backbone, factors: Factors, classes: int, alpha: float, folder: Path, base: Any,
            samples: Sequence[Encoded]) -> Any:  # fmt: skip
    """Write an adapter, reload it on `base`, compare the logits; the reloaded model, or UserError if they differ.

    What is refused does not reach `folder`.
    """
    with files.replace_folder(folder) as spare:
        write(backbone, factors, classes, alpha, spare)
        reloaded = reload(base, spare)
        verify(folder, "the reloaded adapter's", difference(backbone, factors, classes, reloaded, samples))
    return reloaded


def verify(folder: Path, whose: str, gap: float) -> None:
    """UserError unless a difference of logits is small."""
    if not isfinite(gap):
        raise UserError(f"{folder}: {whose} logits are no numbers, training has diverged; try a smaller server.lr")
    if not gap < TOLERANCE:
        raise UserError(f"{folder}: {whose} logits differ by {gap:.1e} (allowed {TOLERANCE:.0e})")


def merge_plainly(
    backbone: Backbone, factors: Factors, classes: int, base: Any, samples: Sequence[Encoded], folder: Path
) -> None:
    """Add everything to the weights of `base`, compare the logits, write it with the tokenizer.

    For models that no adapter holds. UserError if the logits differ.
    """
    weights = dict(base.named_parameters())
    with torch.no_grad():
        for name in backbone.sites:
            site = backbone.layers[name]
            assert isinstance(site, StackedLoRA)
            change = site.scale * factors[f"{name}.B"][0] @ factors[f"{name}.A"][0] + factors[f"{name}.W"]
            weights[f"{name}.weight"] += change.cpu()
        for key, tensor in peft_tensors(backbone, factors, classes).items():
            plain = key.removeprefix(PREFIX)
            if plain in weights:  # heads
                weights[plain].copy_(tensor)
    verify(folder, "the merged weights'", difference(backbone, factors, classes, base.eval(), samples))
    save_whole(base, backbone.tokenizer, folder)


def merge(reloaded: Any, tokenizer: Any, folder: Path) -> None:
    """Write base and adapter merged into plain weights, with the tokenizer."""
    with zoo.quiet():
        plain = reloaded.merge_and_unload()
    save_whole(plain, tokenizer, folder)


def save_whole(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model with its tokenizer, put in place at once."""
    with files.replace_folder(folder, SHARD) as spare, zoo.quiet():
        model.save_pretrained(str(spare))
        tokenizer.save_pretrained(str(spare))
