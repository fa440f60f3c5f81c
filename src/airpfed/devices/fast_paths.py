"""Which fast ways of computing give a base's right numbers: measured on the base itself, before round 1.

Each way is compared with its slow twin, one sample at a time as PEFT computes it, on three devices with unlike random
factors and texts of unlike lengths. What disagrees, or raises, is not used on that base.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.core.rng import stream
from airpfed.core.wheels import cached_text
from airpfed.devices.evaluate import complete, last_scores
from airpfed.devices.gradients import Clients, loss_gradient
from airpfed.devices.prefix_cache import PrefixCache
from airpfed.model.adapters import StackedLoRA
from airpfed.model.backbone import Backbone, FastPaths
from airpfed.model.layout import Factors, gather, initial, trained
from airpfed.model.tokens import Encoded

TOLERANCE = 1e-4
"""Largest relative difference of gradients, and of logits, between a fast way and its slow twin (float32)."""

DEVICES = 3
"""Devices of the probe: where a tensor that is no batch comes through a layer, its length is rarely divisible by 3."""

TOLD = 1e-5
"""Differences above this are told."""

WAYS: Mapping[str, str] = {
    "fused": "adapters as one function",
    "batching": "several samples in a pass",
    "stacking": "several devices in a pass",
    "prefix": "the cache of the layers below the adapters",
    "last_layer": "the last layer only where it is read",
    "packing": "samples end to end",
    "parallel": "passes side by side",
    "decoding": "a cache of keys and values in greedy decoding",
}
"""Name of each way in `FastPaths` -> what it is, in the order in which they are tried."""

NEEDS: Mapping[str, str] = {"stacking": "batching", "packing": "batching"}
"""A way -> another that it stands on."""


@dataclass(frozen=True)
class Measured:
    """What was measured on a base.

    paths: the ways that are used. error: of them all together, relative to one sample at a time: the larger of
    gradients' and logits'. rejected: a way that was tried -> why it is not used.
    """

    paths: FastPaths
    error: float
    rejected: dict[str, str]


@dataclass(frozen=True)
class Numbers:
    """What one way of computing gives: each device's gradient as one vector, logits, greedy completions."""

    gradients: Float[Tensor, "K d"]
    scores: Float[Tensor, "n C"]
    texts: list[str]


def known(clients: Clients, prompts: Sequence[Encoded], base: str, stacking: bool, generate: bool) -> Measured:
    """`measured`, or what it found before on this machine, kept in the cache by everything that it depends on.

    base: the base's identity. stacking: whether a run computes several devices together.
    """
    samples = [sample for shard in clients.shards for sample in shard] + list(prompts)
    lengths = [len(sample.ids) for sample in samples]
    if not lengths:  # a server whose tasks have no text here computes nothing
        return Measured(FastPaths(left=clients.backbone.causal), 0.0, {})
    tokens, wanted = max(lengths), wanted_paths(clients.backbone, stacking)
    key = key_of(clients, base, (min(lengths), tokens), wanted, generate)
    with suppress(ValueError, KeyError, TypeError):  # a damaged file in the cache
        return from_text(
            cached_text("fast_paths", key, lambda: as_text(measured(clients, prompts, tokens, wanted, generate)))
        )
    return measured(clients, prompts, tokens, wanted, generate)


def measured(clients: Clients, prompts: Sequence[Encoded], tokens: int, wanted: FastPaths, generate: bool) -> Measured:
    """The fast ways that give the right numbers on a fleet's base.

    prompts: what is evaluated, for a fleet without data of its own. tokens: of the longest sample. wanted: the ways to
    try, on a side for padding to try first. generate: whether the base completes texts. Raises UserError where the base
    does not compute even one sample.
    """
    probe = probing(clients, prompts, tokens)
    factors = factors_for(probe)
    try:
        right = one_at_a_time(probe, factors, generate)
    except UserError:
        raise
    except Exception as error:  # whatever a model raises on plain input
        raise UserError(f"model.base: this base cannot be trained: {reason(error)}") from None
    if not right.gradients.isfinite().all() or not right.scores.isfinite().all():
        raise UserError("model.base: this base gives no finite numbers, before any training; its weights are damaged")
    if not right.gradients.norm(dim=1).all():
        raise UserError("adapters.target_modules: no adapter has a gradient on this base; choose other modules")
    if (off := unsteady(probe, factors, right)) > TOLERANCE:
        raise UserError(
            f"model.base: this base gives other numbers when it reads a text again (off by {off:.1e}), so nothing that "
            "is trained or exported can be checked; a base without random draws in its passes fits"
        )

    def gap(paths: FastPaths) -> float:
        found = together(probe, factors, paths, generate)
        return max(difference(found, right), float(found.texts != right.texts))

    whole, why = attempt(gap, wanted)
    if why is None:
        return Measured(wanted, whole, {})
    return one_by_one(gap, wanted)


def one_by_one(gap: Callable[[FastPaths], float], wanted: FastPaths) -> Measured:
    """The ways added one after another, each kept where all together still agree."""
    paths, error, rejected = FastPaths(left=wanted.left), 0.0, dict[str, str]()
    for way in (way for way in WAYS if getattr(wanted, way)):
        if (base := NEEDS.get(way)) and not getattr(paths, base):
            rejected[way] = f"it needs {WAYS[base]}"
            continue
        sides = (wanted.left, not wanted.left) if way == "batching" else (paths.left,)
        for left in sides:
            found, why = attempt(gap, replace(paths, **{way: True}, left=left))
            if why is None:
                paths, error = replace(paths, **{way: True}, left=left), found
                rejected.pop(way, None)
                break
            rejected.setdefault(way, why)
    return Measured(paths, error, rejected)


def attempt(gap: Callable[[FastPaths], float], paths: FastPaths) -> tuple[float, str | None]:
    """The difference that some ways make together, and why they cannot be used; None where they can."""
    try:
        found = gap(paths)
    except Exception as error:  # models raise what they like where they are not called as they expect
        return 0.0, reason(error)
    return found, None if found <= TOLERANCE else f"off by {found:.1e}"


def probing(clients: Clients, prompts: Sequence[Encoded], tokens: int) -> Clients:
    """Three devices of a fleet with samples of unlike number and length, one of `tokens`: the one that predicts most
    tokens a sample, the first and the last.

    Beside the longest, which is never padded, another one is three quarters as long and repeats itself: where a model
    keeps the best of its tokens, equal ones change places with the padding.

    What is to be predicted is changed to what no model expects: where a model is sure and right, a gradient is what
    rounding leaves of 1 - 1.
    """
    targets = [max((len(sample.targets) for sample in shard), default=0) for shard in clients.shards]
    most = max(range(len(targets)), key=targets.__getitem__)
    chosen = [most, 0, len(targets) - 1]
    everyone = by_length([*(sample for shard in clients.shards for sample in shard), *prompts])
    shards = [by_length(clients.shards[k] or everyone) for k in chosen]
    filler = [token for shard in shards for sample in shard for token in sample.ids]
    first = [lengthened(shards[0][-1], filler, tokens), shards[0][0]]
    least = everyone[0]  # the shortest text of all is read too
    padded = max(len(least.ids), 3 * tokens // 4)
    long, middle, short = shards[1][-1], shards[1][len(shards[1]) // 2], shards[1][0]
    second = [repeating(long, padded), middle, short]
    third = [replace(least, targets=shards[2][0].targets[: len(least.ids)])]
    task_of = clients.task_of[torch.tensor(chosen)]
    limits = [clients.classes[int(n)] for n in task_of]
    changed = [
        tuple(surprising(sample, number, filler, limit) for number, sample in enumerate(shard))
        for shard, limit in zip((first, second, third), limits, strict=True)
    ]
    return replace(clients, shards=tuple(changed), task_of=task_of, batch_multiplier=(), autocast=False)


def surprising(sample: Encoded, number: int, filler: Sequence[int], classes: int) -> Encoded:
    """A sample with other targets: any tokens, or a class by turns where `classes` says how many there are."""
    count = len(sample.targets)
    tokens = [filler[(7 * number + 3 * place) % len(filler)] for place in range(count)]
    return Encoded(sample.ids, (number % classes,) if classes else tuple(tokens))


def by_length(shard: Sequence[Encoded]) -> list[Encoded]:
    """A device's samples, the shortest first."""
    return sorted(shard, key=lambda sample: len(sample.ids))


def lengthened(sample: Encoded, filler: Sequence[int], tokens: int) -> Encoded:
    """A sample with others' tokens behind its first one, so that it has so many; its end is as it was."""
    more = max(0, tokens - len(sample.ids))
    repeated = (list(filler) * (more // len(filler) + 1))[:more]
    return Encoded((*sample.ids[:1], *repeated, *sample.ids[1:]), sample.targets)


def repeating(sample: Encoded, tokens: int) -> Encoded:
    """A sample of so many tokens: its first and its last one, and between them a few of its others in turn."""
    few = sample.ids[1:4] or sample.ids
    between = (few * tokens)[: max(0, tokens - 2)]
    ids = (*sample.ids[:1], *between, *sample.ids[-1:])[-tokens:]
    return Encoded(ids, sample.targets[:tokens])


def factors_for(clients: Clients) -> Factors:
    """Random factors of three devices, none of them zero.

    The entries of c B A are a tenth of its layer's frozen weight, and at least half of what keeps a layer's input as
    large as it is: in a base of tiny weights no fault would show.

    Random: stream (0, "fast paths").
    """
    rng, backbone = stream(0, "fast paths"), clients.backbone
    like = initial_factors(clients)
    found: Factors = {}
    for key in sorted(trained(like)):
        layer, kind = key.rsplit(".", 1)
        noise = torch.randn(DEVICES, *like[key].shape[1:], generator=rng)
        module = backbone.layers[layer]
        if kind == "head" or not isinstance(module, StackedLoRA):
            found[key] = like[key] + 0.1 * like[key].std() * noise
        elif kind == "A":
            found[key] = noise * (3 * noise.shape[2]) ** -0.5
        else:
            weight = module.base.weight.detach().float()
            spread = float(weight.norm()) / weight.numel() ** 0.5
            rank, width = noise.shape[2], like[f"{layer}.A"].shape[2]
            size = max(0.1 * spread, 0.5 * width**-0.5)
            found[key] = noise * size * (3 * width / rank) ** 0.5 / module.scale
    return {key: tensor.to(backbone.device) for key, tensor in found.items()}


def initial_factors(clients: Clients) -> Factors:
    """Factors of the shapes that the devices have, at the values they begin with."""
    values = initial(clients.layout, clients.backbone.heads, stream(0, "fast paths"))
    zero = torch.zeros(DEVICES, dtype=torch.long)
    return gather(values, clients.layout, zero, zero)


def one_at_a_time(clients: Clients, factors: Factors, generate: bool) -> Numbers:
    """The right numbers: every sample of every device in a pass of its own, nothing kept, cut or padded."""
    return together(clients, factors, FastPaths(), generate)


def together(clients: Clients, factors: Factors, paths: FastPaths, generate: bool) -> Numbers:
    """The numbers as a run with these ways computes them."""
    backbone = clients.backbone.on(paths)
    cache = PrefixCache(backbone)
    own = replace(clients, backbone=backbone, cache=cache)
    for k, shard in enumerate(clients.shards):
        cache.fill(f"device {k}", shard, range(len(shard)))
    engine = replace(own, backbone=backbone.twins(2)[1]) if paths.parallel else own
    rows = [list(range(len(shard))) for shard in clients.shards]
    every = range(len(clients.shards))
    parts = [list(every)] if paths.stacking else [[k] for k in every]
    gradients = []
    for part in parts:
        mine = {key: tensor[part] for key, tensor in factors.items()}
        _, found = loss_gradient(engine, mine, part, [rows[k] for k in part])
        gradients.append(torch.cat([found[key].flatten(1) for key in sorted(found)], 1))
    samples = [sample for shard in clients.shards for sample in shard]
    prompts = [sample.ids for sample in samples[:2]]
    texts = complete(own, first_model(factors), prompts, 3) if generate else []
    return Numbers(torch.cat(gradients).cpu(), scores_of(engine, factors, samples), texts)


def scores_of(clients: Clients, factors: Factors, samples: Sequence[Encoded]) -> Float[Tensor, "n C"]:
    """Logits of samples by the first device's model."""
    every = list(range(len(samples)))
    clients.cache.fill("probe", samples, every)
    batches = [every] if clients.backbone.paths.batching else [[index] for index in every]
    return torch.cat([last_scores(clients, first_model(factors), "probe", samples, batch) for batch in batches]).cpu()


def first_model(factors: Factors) -> Factors:
    """The first device's factors."""
    return {key: tensor[:1] for key, tensor in factors.items()}


def unsteady(clients: Clients, factors: Factors, right: Numbers) -> float:
    """How far the logits of the longest sample are from themselves when it is read again, relative to the largest."""
    plain = clients.backbone.on(FastPaths())
    longest = clients.shards[0][0]
    again = scores_of(replace(clients, backbone=plain, cache=PrefixCache(plain)), factors, [longest])[0]
    return float((again - right.scores[0]).abs().max() / right.scores[0].abs().max())


def difference(found: Numbers, right: Numbers) -> float:
    """The largest relative difference: of a device's gradient, of a sample's logits."""
    gradients = (found.gradients - right.gradients).norm(dim=1) / right.gradients.norm(dim=1)
    scores = (found.scores - right.scores).abs().amax(1) / right.scores.abs().amax(1)
    largest = float(torch.cat([gradients, scores]).max())
    return largest if largest == largest else float("inf")


def reason(error: BaseException) -> str:
    """An exception in a few words."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def key_of(clients: Clients, base: str, tokens: tuple[int, int], wanted: FastPaths, generate: bool) -> dict[str, Any]:
    """Everything that a measurement depends on. base: the base's identity. tokens: of the shortest and longest text."""
    backbone = clients.backbone
    parameter = next(iter(backbone.model.parameters()))
    adapted = {n: [*s, type(backbone.layers[n].base).__name__] for n, s in sorted(backbone.sites.items())}
    return {
        "base": base,
        "code": code(),
        "versions": [version(name) for name in ("torch", "transformers", "peft")],
        "layers": adapted,
        "heads": {name: list(weight.shape) for name, weight in backbone.heads.items()},
        "entries": [[entry.layer, entry.kind, *entry.shape] for entry in clients.layout.entries],
        "classes": sorted(set(clients.classes)),
        "prefix": len(backbone.prefix),
        "dtype": str(parameter.dtype),
        "device": str(parameter.device),
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "wanted": asdict(wanted),
        "generate": generate,
    }


def code() -> str:
    """sha256 of the code that computes: the packages `model` and `devices`."""
    home = Path(__file__).parent.parent
    files = sorted([*(home / "model").glob("*.py"), *(home / "devices").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def as_text(found: Measured) -> str:
    """A measurement as JSON."""
    return json.dumps(asdict(found))


def from_text(text: str) -> Measured:
    """The inverse of `as_text`. Raises ValueError, KeyError or TypeError where it is none."""
    tree = json.loads(text)
    paths = FastPaths(**tree["paths"])
    if any(type(getattr(paths, item.name)) is not bool for item in fields(FastPaths)):
        raise TypeError("a way is used or not")
    rejected = {str(way): str(why) for way, why in tree["rejected"].items()}
    return Measured(paths, float(tree["error"]), rejected)


def wanted_paths(backbone: Backbone, stacking: bool) -> FastPaths:
    """The ways to try on a base. stacking: whether a run computes several devices together.

    Samples lie end to end only on a CPU: on a GPU a layer's many small products, one a device, would cost more than
    padding. Classifiers are padded first on the side that their tokenizer names.
    """
    cpu, causal = backbone.device.type == "cpu", backbone.causal
    return FastPaths(
        prefix=bool(backbone.prefix),
        packing=causal and cpu,
        last_layer=True,
        stacking=stacking,
        batching=True,
        left=causal or getattr(backbone.tokenizer, "padding_side", "right") == "left",
        parallel=cpu,
        fused=True,
        decoding=causal,
    )


def lines(base: str, found: Measured) -> list[str]:
    """What a user should know of a measurement: nothing where all ways agree closely."""
    out = []
    if found.rejected:
        parts = [f"without {WAYS[way]} ({why})" for way, why in found.rejected.items()]
        out.append(f"{base}: computed {', '.join(parts)}: slower, and right to {found.error:.0e}")
    elif found.error > TOLD:
        out.append(f"{base}: gradients and logits are within {found.error:.1e} of one sample at a time")
    return out
