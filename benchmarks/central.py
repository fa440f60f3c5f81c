"""One centralised step with PEFT over a round's samples: the baseline, and the agreement of its gradient with ours."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from airpfed.config.schema import Settings
from airpfed.core.rng import stream
from airpfed.devices.clients import draw_batches
from airpfed.devices.gradients import gradients, mask_classes
from airpfed.model.backbone import load_model
from airpfed.model.layout import Factors, Vectors, gather, unflatten
from airpfed.model.methods import SCOPES
from airpfed.model.tokens import Encoding, collate
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import State, vectors

Weighted = list[tuple[Encoding, float, int]]
"""Samples with what each counts in the loss, D_k/D over the device's batch, and its task's classes (0: causal LM)."""


@dataclass
class Central:
    """PEFT's model with as many parameters as the round trains, its optimiser, and the samples of a forward pass."""

    model: Any
    optimizer: torch.optim.Optimizer
    causal: bool
    pad: int
    micro_batch: int = 0


def central(settings: Settings, made: TrainingSetup) -> Central:
    """A fresh base model under `peft.get_peft_model`: rank R_s + R_p on the same layers, the same head trained."""
    wanted, backbone = settings.adapters, made.clients.backbone
    classes = max(max(made.clients.classes), 1)
    loaded = load_model(
        settings.model.base, settings.model.kind, classes, str(backbone.device), stream(settings.run.seed, "head")
    )
    config = peft.LoraConfig(
        r=wanted.rank_shared + wanted.rank_personal,
        lora_alpha=wanted.alpha,
        lora_dropout=0.0,
        target_modules=list(backbone.target_layers),
        modules_to_save=list(backbone.heads) or None,
    )
    adapted = peft.get_peft_model(loaded.model, config).eval()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    rate = made.server_step.lr if made.server_step.lr is not None else 1e-3
    return Central(adapted, torch.optim.Adam(trained, lr=rate), loaded.causal, loaded.tokenizer.pad_token_id)


def samples_of(made: TrainingSetup, cursors: Tensor, seed: int) -> Weighted:
    """The samples of the round that starts at these cursors, pooled and shuffled, as a central trainer reads them."""
    clients = made.clients
    plan, _ = draw_batches(clients, cursors, made.local_training.batch_size, 1)
    sizes = [len(shard) for shard in clients.shards]
    pooled = [
        (clients.shards[k][i], sizes[k] / sum(sizes) / len(steps[0]), clients.classes[int(clients.task_of[k])])
        for k, steps in enumerate(plan)
        for i in steps[0]
    ]
    random.Random(seed).shuffle(pooled)
    return pooled


def backward(one: Central, samples: Weighted, all_logits: bool = False) -> None:
    """The gradient of the weighted loss, in micro-batches padded to their longest.

    Logits only where the loss reads them; all_logits: of every position, as a trainer has them that asks for nothing.
    """
    one.optimizer.zero_grad(set_to_none=True)
    size = one.micro_batch or len(samples)
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        batch = collate([sample for sample, _, _ in part], one.pad, one.causal)
        fields: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        if one.causal:
            fields |= {"position_ids": (batch.mask.long().cumsum(1) - 1).clamp(min=0), "use_cache": False}
            fields |= {"logits_to_keep": 0 if all_logits else batch.targets.shape[1]}
        scores = one.model(**fields).logits
        scores = scores[:, -batch.targets.shape[1] :] if one.causal else scores
        scores = scores if one.causal else mask_classes(scores[:, None, :], [limit for _, _, limit in part])
        each = cross_entropy(scores.flatten(0, 1), batch.targets.flatten(), reduction="none").reshape(len(part), -1)
        counts = (batch.targets != -100).sum(1)
        (each.sum(1) / counts @ torch.tensor([weight for _, weight, _ in part]).to(each)).backward()


def train_step(one: Central, samples: Weighted, all_logits: bool = False) -> None:
    """One centralised step: gradient and Adam."""
    backward(one, samples, all_logits)
    one.optimizer.step()


def best_micro_batch(one: Central, samples: Weighted, sizes: Sequence[int]) -> dict[int, float]:
    """CPU seconds of one step at each micro-batch, once warm; the best one is set."""
    seconds: dict[int, float] = {}
    for size in sorted({min(size, len(samples)) for size in sizes}):
        one.micro_batch = size
        train_step(one, samples[: 2 * size])  # the first of a size pays for the memory it is given
        start = time.process_time()
        train_step(one, samples)
        seconds[size] = time.process_time() - start
    one.micro_batch = min(seconds, key=seconds.__getitem__)
    return seconds


def agreement(made: TrainingSetup, one: Central, seed: int = 0) -> dict[str, float]:
    """Relative difference of the two gradients at random adapters that all tasks share, and that of the worst factor.

    Ours: sum_k (D_k/D) g_k of the stacked pass, scopes put side by side. PEFT's: of the weighted loss, in float64, for
    in float32 its own error is the larger one.
    """
    clients, same = made.clients, shared_values(made.initial, seed)
    first = torch.zeros(1, dtype=torch.long)
    put(one, gather(same, clients.layout, first, first))
    start = torch.zeros(len(clients.shards), dtype=torch.long)
    plan, _ = draw_batches(clients, start, made.local_training.batch_size, 1)
    found, _ = gradients(clients, same, plan, 1.0, made.devices_per_pass)
    ours = unflatten(mean_gradient(made, found), clients.layout)
    one.model.double()
    one.micro_batch = 16
    backward(one, samples_of(made, start, seed))
    theirs = taken(one, ours)
    one.model.float()
    apart = {key: (float((ours[key] - theirs[key]).norm()), float(theirs[key].norm())) for key in ours}
    whole = sum(off**2 for off, _ in apart.values()) / sum(size**2 for _, size in apart.values())
    return {"whole": whole**0.5, "worst_factor": max(off / size for off, size in apart.values())}


def shared_values(state: State, seed: int) -> Vectors:
    """Random values near a state's, the same for every task and device; no factor is zero."""
    rng = torch.Generator().manual_seed(seed)
    return {
        scope: (value[:1] + 0.01 * torch.randn(1, value.shape[1], generator=rng)).repeat(len(value), 1)
        for scope, value in vectors(state).items()
    }


def mean_gradient(made: TrainingSetup, found: Vectors) -> Vectors:
    """sum_k (D_k/D) g_k in every scope, one row each."""
    sizes = torch.tensor([float(len(shard)) for shard in made.clients.shards])
    weight = sizes / sizes.sum()
    return {scope: (weight @ found[scope])[None, :] for scope in SCOPES}


def put(one: Central, factors: Factors) -> None:
    """Set PEFT's parameters to these factors (of one device)."""
    with torch.no_grad():
        for key, value in factors.items():
            layer, _, kind = key.rpartition(".")
            module = one.model.base_model.model.get_submodule(layer)
            if kind == "head":
                own = module.modules_to_save["default"]
                own.weight.copy_(value[0, :, : own.in_features])
                own.bias.copy_(value[0, :, -1])
            else:
                (module.lora_A if kind == "A" else module.lora_B)["default"].weight.copy_(value[0])


def taken(one: Central, like: Factors) -> Factors:
    """PEFT's gradients by the names of our factors."""
    found: Factors = {}
    for key in like:
        layer, _, kind = key.rpartition(".")
        module = one.model.base_model.model.get_submodule(layer)
        if kind == "head":
            own = module.modules_to_save["default"]
            found[key] = torch.cat([own.weight.grad, own.bias.grad[:, None]], 1)[None]
        else:
            found[key] = (module.lora_A if kind == "A" else module.lora_B)["default"].weight.grad[None]
    return found
