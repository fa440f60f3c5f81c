"""A task's model as a plain PEFT adapter, checked by loading it with PEFT alone."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from airpfed import files, record
from airpfed.errors import UserError
from airpfed.model import catalog
from airpfed.model.adapters import StackedLoRA
from airpfed.model.backbone import Backbone
from airpfed.model.encode import Encoded, collate
from airpfed.model.passes import adapted, logits
from airpfed.model.vector import Factors

SHARD = r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
"""Files of merged weights, which may be cut into more pieces or fewer."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, between our model and the reloaded export."""


def peft_tensors(backbone: Backbone, factors: Factors, classes: int) -> dict[str, Tensor]:
    """The factors of one model (K = 1) under PEFT's names; heads cut to a task's own classes."""
    tensors: dict[str, Tensor] = {}
    for name in backbone.sites:
        tensors[f"base_model.model.{name}.lora_A.weight"] = factors[f"{name}.A"][0]
        tensors[f"base_model.model.{name}.lora_B.weight"] = factors[f"{name}.B"][0]
    for name, weight in head_rows(backbone, factors, classes).items():
        width = backbone.layers[name].base.in_features
        tensors[f"base_model.model.{name}.weight"] = weight[:, :width]
        if weight.shape[1] > width:
            tensors[f"base_model.model.{name}.bias"] = weight[:, -1]
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


def head_rows(backbone: Backbone, factors: Factors, classes: int) -> dict[str, Tensor]:
    """Head weights of one model; the layer whose rows are classes (the last) keeps the task's own."""
    heads = {name: factors[f"{name}.head"][0] for name in backbone.heads}
    if heads:
        last = list(heads)[-1]
        heads[last] = heads[last][:classes]
    return heads


def write(backbone: Backbone, factors: Factors, classes: int, alpha: float, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors: rank R_s + R_p and alpha as set give the same scale.

    folder: there already, and empty.
    """
    from peft import LoraConfig, TaskType

    rank = next(iter(factors.values())).shape[1]
    modules = sorted({name.split(".")[0] for name in backbone.heads})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(backbone.sites),
        modules_to_save=modules or None,
        task_type=TaskType.CAUSAL_LM if backbone.causal else TaskType.SEQ_CLS,
        base_model_name_or_path=backbone.folder,
        inference_mode=True,
    )
    config.target_modules = sorted(backbone.sites)  # PEFT makes it a set, written in another order by every process
    config.save_pretrained(str(folder))
    data = save(peft_tensors(backbone, factors, classes), {"format": "pt"})
    record.write_atomic(folder / "adapter_model.safetensors", data)


def fresh_base(backbone: Backbone, classes: int) -> Any:
    """The base model loaded anew, as a user of PEFT would."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    with catalog.quiet():
        if backbone.causal:
            return AutoModelForCausalLM.from_pretrained(backbone.folder, dtype=torch.float32)
        return AutoModelForSequenceClassification.from_pretrained(
            backbone.folder, dtype=torch.float32, num_labels=classes, ignore_mismatched_sizes=True
        )


def reload(base: Any, folder: Path) -> Any:
    """An exported adapter on a base model, by PEFT alone."""
    from peft import PeftModel

    with catalog.quiet():
        return PeftModel.from_pretrained(base, str(folder)).eval()


def difference(backbone: Backbone, factors: Factors, classes: int, reloaded: Any, samples: Sequence[Encoded]) -> float:
    """Largest difference of logits on `samples` between our model and a reloaded one, relative to the largest logit."""
    batch = collate(samples, backbone.tokenizer.pad_token_id, backbone.causal)
    with torch.no_grad():
        with adapted(backbone, factors):
            ours = logits(backbone, batch.ids, batch.mask, 1)[:, -1].cpu()
        fields = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        if backbone.causal:
            fields["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        theirs = reloaded(**fields).logits
    theirs = theirs[:, -1] if backbone.causal else theirs
    ours = ours if backbone.causal else ours[:, :classes]
    return float((ours - theirs).abs().max() / ours.abs().max())


def checked(backbone: Backbone, factors: Factors, classes: int, alpha: float, folder: Path, base: Any,
            samples: Sequence[Encoded]) -> Any:  # fmt: skip
    """Write an adapter, reload it on `base`, compare the logits; the reloaded model, or UserError if they differ.

    An adapter that does not pass is not left behind, and takes no other's place.
    """
    with files.filling(folder) as spare:
        write(backbone, factors, classes, alpha, spare)
        reloaded = reload(base, spare)
        gap = difference(backbone, factors, classes, reloaded, samples)
        if not isfinite(gap):
            raise UserError(f"{folder}: its logits are no numbers, training has diverged; try a smaller server.lr")
        if not gap < TOLERANCE:
            raise UserError(f"{folder}: the reloaded adapter's logits differ by {gap:.1e} (allowed {TOLERANCE:.0e})")
    return reloaded


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
            plain = key.removeprefix("base_model.model.")
            if plain in weights:  # heads
                weights[plain].copy_(tensor)
    gap = difference(backbone, factors, classes, base.eval(), samples)
    if not gap < TOLERANCE:
        raise UserError(f"{folder}: the merged weights' logits differ by {gap:.1e} (allowed {TOLERANCE:.0e})")
    with files.filling(folder, SHARD) as spare, catalog.quiet():
        base.save_pretrained(str(spare))
        backbone.tokenizer.save_pretrained(str(spare))


def merge(reloaded: Any, tokenizer: Any, folder: Path) -> None:
    """Write base and adapter merged into plain weights, with the tokenizer."""
    with files.filling(folder, SHARD) as spare, catalog.quiet():
        reloaded.merge_and_unload().save_pretrained(str(spare))
        tokenizer.save_pretrained(str(spare))
