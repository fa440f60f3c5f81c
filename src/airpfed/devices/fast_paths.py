"""Choice of the fast paths that give correct numbers on a base model, measured on the base before round 1.

Each fast path is compared with the slow path, which computes one sample at a time as PEFT does, on three devices with
different random factors and texts of different lengths. A fast path that disagrees or raises is not used on that base.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.errors import UserError, first_line
from airpfed.core.rng import stream
from airpfed.core.wheels import cached_text
from airpfed.devices.clients import Clients
from airpfed.devices.evaluate import complete, last_scores
from airpfed.devices.gradients import loss_gradient, row_losses
from airpfed.devices.prefix_cache import PrefixCache
from airpfed.model.backbone import Backbone, FastPaths
from airpfed.model.layers import StackedLoRA, plain_matrix, weight_norm
from airpfed.model.layout import Factors, gather, initial_vectors, trained_factors
from airpfed.model.precision import DTYPES, QUANTISATIONS, in_float32
from airpfed.model.tokens import Encoding

TOLERANCE = 1e-4
"""Largest relative difference of gradients, and of logits, between a fast path and the slow path (float32)."""

COARSE_FACTOR = 10
"""Where products are rounded to fewer digits than float32's, a fast path may differ from the slow path by this multiple
of what the slow path differs from itself when another text of the same length is in the pass, and when adapters change
in digits that bfloat16 does not have. (On some CPUs the company alone changes no bit.)"""

COARSE_EPS = 2.0**-8
"""Unit in the last place of bfloat16, relative to the number."""

NUM_DEVICES = 3
"""Devices of the probe. A tensor without a batch axis rarely has a length that 3 divides, so such a tensor shows."""

REPORTED = 1e-5
"""The smallest difference that is reported to the user."""

DESCRIPTIONS: Mapping[str, str] = {
    "fused": "adapters as one function",
    "batching": "several samples in a pass",
    "stacking": "several devices in a pass",
    "prefix": "the cache of the layers below the adapters",
    "last_layer": "the last layer only where it is read",
    "packing": "samples end to end",
    "parallel": "passes side by side",
    "decoding": "a cache of keys and values in greedy decoding",
}
"""Field of `FastPaths` -> description, in the order in which the paths are tried."""

REQUIRES: Mapping[str, str] = {"stacking": "batching", "packing": "batching"}
"""Path -> another path that it needs."""


@dataclass(frozen=True)
class Measurement:
    """Result of the comparison on a base.

    paths: the fast paths to use. error: largest relative difference of gradients and logits between a run with all of
    `paths` and one without, which computes one sample at a time. rejected: path -> reason why it is not used.
    tolerance: the largest error that is rounding on this base.
    """

    paths: FastPaths
    error: float
    rejected: dict[str, str]
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Outputs:
    """Numbers to compare: each device's gradient as one vector, logits, greedy completions."""

    gradients: Float[Tensor, "K d"]
    scores: Float[Tensor, "n C"]
    texts: list[str]


def cached_measurement(
    clients: Clients, prompts: Sequence[Encoding], base: str, stacking: bool, generate: bool
) -> Measurement:
    """The result of `measure_paths`, from the cache if this machine has measured the same before.

    prompts: the evaluation's prompts, on which clients without data are measured. base: identity of the base model.
    stacking: whether the run computes several devices in a pass. generate: whether the base completes texts.
    """
    samples = [sample for shard in clients.shards for sample in shard] + list(prompts)
    lengths = [len(sample.ids) for sample in samples]
    if not lengths:  # a server without texts computes nothing
        return Measurement(FastPaths(pad_left=clients.backbone.causal), 0.0, {})
    tokens, candidates = max(lengths), candidate_paths(clients.backbone, stacking)
    key = cache_key(clients, base, (min(lengths), tokens), candidates, generate)

    def as_text() -> str:
        return json.dumps(asdict(measure_paths(clients, prompts, tokens, candidates, generate)))

    with suppress(ValueError, KeyError, TypeError):  # a damaged file in the cache
        return parse_measurement(cached_text("fast_paths", key, as_text))
    return measure_paths(clients, prompts, tokens, candidates, generate)


def measure_paths(
    clients: Clients, prompts: Sequence[Encoding], tokens: int, candidates: FastPaths, generate: bool
) -> Measurement:
    """Find the fast paths that give correct numbers on the clients' base.

    tokens: length of the longest sample. candidates: the paths to try, and the side for padding to try first. The rest
    as in `cached_measurement`. Where products are rounded to few digits, rounding hides faults of some percent: the
    same numbers are then tried in float32 first, if these fit into memory. Raises UserError where the base cannot
    compute one sample at a time, has no finite numbers, or has no gradients.
    """
    exact = Measurement(candidates, 0.0, {})
    if clients.backbone.coarse:
        with in_float32(clients.backbone.model) as fits, suppress(UserError):
            if fits:
                exact = measure_as_held(clients, prompts, tokens, candidates, generate)
    held = measure_as_held(clients, prompts, tokens, exact.paths, generate)
    return replace(held, rejected=exact.rejected | held.rejected)


def measure_as_held(
    clients: Clients, prompts: Sequence[Encoding], tokens: int, candidates: FastPaths, generate: bool
) -> Measurement:
    """`measure_paths` with the base as it is."""
    probe = probe_clients(clients, prompts, tokens)
    factors = random_factors(probe)
    try:
        reference = compute_outputs(probe, factors, FastPaths(), generate)
    except UserError:
        raise
    except Exception as failure:  # a model may raise anything on plain input
        raise UserError(f"model.base: this base cannot be trained: {_reason(failure)}") from None
    if not reference.gradients.isfinite().all() or not reference.scores.isfinite().all():
        raise UserError("model.base: this base gives no finite numbers, before any training; its weights are damaged")
    if not reference.gradients.norm(dim=1).all():
        raise UserError("adapters.target_modules: no adapter has a gradient on this base; choose other modules")
    if (error := repeat_error(probe, factors, reference)) > TOLERANCE:
        raise UserError(
            f"model.base: this base gives other numbers when it reads a text again (off by {error:.1e}), so nothing "
            "that is trained or exported can be checked; use a base whose passes draw no random numbers"
        )

    tolerance, texts_tell = TOLERANCE, True
    if probe.backbone.coarse:
        company = company_outputs(probe, factors, generate)
        shaken = company_outputs(probe, shake(factors), generate)
        changes = max_difference(company, reference), max_difference(shaken, reference)
        tolerance = max(TOLERANCE, COARSE_FACTOR * max(changes))
        texts_tell = company.texts == shaken.texts == reference.texts[:1]

    def error_of(paths: FastPaths) -> float:
        outputs = compute_outputs(probe, factors, paths, generate)
        return max(max_difference(outputs, reference), float(texts_tell and outputs.texts != reference.texts))

    error, reason = try_paths(error_of, candidates, tolerance)
    if reason is None:
        return Measurement(candidates, error, {}, tolerance)
    return select_paths(error_of, candidates, tolerance)


def select_paths(
    error_of: Callable[[FastPaths], float], candidates: FastPaths, tolerance: float = TOLERANCE
) -> Measurement:
    """Add the candidates one after another; a path stays if all selected paths together are still correct."""
    paths, error, rejected = FastPaths(pad_left=candidates.pad_left), 0.0, dict[str, str]()
    for name in (name for name in DESCRIPTIONS if getattr(candidates, name)):
        if (required := REQUIRES.get(name)) and not getattr(paths, required):
            rejected[name] = f"it needs {DESCRIPTIONS[required]}"
            continue
        sides = (candidates.pad_left, not candidates.pad_left) if name == "batching" else (paths.pad_left,)
        for pad_left in sides:
            trial = replace(paths, **{name: True}, pad_left=pad_left)
            trial_error, reason = try_paths(error_of, trial, tolerance)
            if reason is None:
                paths, error = trial, trial_error
                rejected.pop(name, None)
                break
            rejected.setdefault(name, reason)
    return Measurement(paths, error, rejected, tolerance)


def try_paths(
    error_of: Callable[[FastPaths], float], paths: FastPaths, tolerance: float = TOLERANCE
) -> tuple[float, str | None]:
    """The error of some paths together, and the reason why they cannot be used; None where they can."""
    try:
        error = error_of(paths)
    except Exception as failure:  # a model may raise anything where it is called in an unexpected way
        return 0.0, _reason(failure)
    return error, None if error <= tolerance else f"off by {error:.1e}"


def probe_clients(clients: Clients, prompts: Sequence[Encoding], tokens: int) -> Clients:
    """Three devices with samples of different number and length, one sample of `tokens` tokens.

    They stand for the device with the most targets in a sample, the first device and the last. The longest sample is
    never padded. Another sample has three quarters of its length and repeats a few tokens: a model that keeps only its
    highest-scored tokens then has ties, and padding changes the order of ties. Targets are replaced by unlikely
    targets: where a model is certain and correct, its gradient is the rounding error of 1 - 1.
    """
    targets = [max((len(sample.targets) for sample in shard), default=0) for shard in clients.shards]
    chosen = [max(range(len(targets)), key=targets.__getitem__), 0, len(targets) - 1]
    texts = sort_by_length([*(sample for shard in clients.shards for sample in shard), *prompts])
    shards = [sort_by_length(clients.shards[k] or texts) for k in chosen]
    filler = [token for shard in shards for sample in shard for token in sample.ids]
    first = [lengthen(shards[0][-1], filler, tokens), shards[0][0]]
    shortest = texts[0]
    padded = max(len(shortest.ids), 3 * tokens // 4)
    long, middle, short = shards[1][-1], shards[1][len(shards[1]) // 2], shards[1][0]
    second = [repeat_tokens(long, padded), middle, short]
    third = [replace(shortest, targets=shards[2][0].targets[: len(shortest.ids)])]
    task_of = clients.task_of[torch.tensor(chosen)]
    limits = [clients.classes[int(n)] for n in task_of]
    changed = [
        tuple(replace_targets(sample, number, filler, limit) for number, sample in enumerate(shard))
        for shard, limit in zip((first, second, third), limits, strict=True)
    ]
    return replace(
        clients, shards=tuple(changed), task_of=task_of, batch_multiplier=(), autocast=False, dropout=0.0, numbers=()
    )


def replace_targets(sample: Encoding, number: int, filler: Sequence[int], classes: int) -> Encoding:
    """Sample `number` of a device with arbitrary target tokens, or with the next class where `classes` is not 0."""
    count = len(sample.targets)
    tokens = [filler[(7 * number + 3 * index) % len(filler)] for index in range(count)]
    return Encoding(sample.ids, (number % classes,) if classes else tuple(tokens))


def sort_by_length(samples: Sequence[Encoding]) -> list[Encoding]:
    """Samples in order of length, the shortest first."""
    return sorted(samples, key=lambda sample: len(sample.ids))


def lengthen(sample: Encoding, filler: Sequence[int], tokens: int) -> Encoding:
    """A sample with filler tokens after its first token, so that it has `tokens` tokens; its end stays."""
    missing = max(0, tokens - len(sample.ids))
    repeated = (list(filler) * (missing // len(filler) + 1))[:missing]
    return Encoding((*sample.ids[:1], *repeated, *sample.ids[1:]), sample.targets)


def repeat_tokens(sample: Encoding, tokens: int) -> Encoding:
    """A sample of `tokens` tokens: its first and last token, and between them three of its tokens over and over."""
    few = sample.ids[1:4] or sample.ids
    middle = (few * tokens)[: max(0, tokens - 2)]
    ids = (*sample.ids[:1], *middle, *sample.ids[-1:])[-tokens:]
    return Encoding(ids, sample.targets[:tokens])


def random_factors(clients: Clients) -> Factors:
    """Random factors of three devices, none of them zero.

    The entries of c B A have a tenth of the standard deviation of the layer's frozen weight, and at least half of the
    deviation that keeps the size of the layer's input: in a base with tiny weights no fault would show otherwise.
    Random: stream (0, "fast paths").
    """
    rng, backbone = stream(0, "fast paths"), clients.backbone
    values = initial_vectors(clients.layout, backbone.heads, stream(0, "fast paths"))
    zeros = torch.zeros(NUM_DEVICES, dtype=torch.long)
    start = gather(values, clients.layout, zeros, zeros)
    factors: Factors = {}
    for key in sorted(trained_factors(start)):
        layer, kind = key.rsplit(".", 1)
        noise = torch.randn(NUM_DEVICES, *start[key].shape[1:], generator=rng)
        module = backbone.layers[layer]
        if kind == "head" or not isinstance(module, StackedLoRA):
            factors[key] = start[key] + 0.1 * start[key].std() * noise
        elif kind == "A":
            factors[key] = noise * (3 * noise.shape[2]) ** -0.5
        else:
            rank, width = noise.shape[2], start[f"{layer}.A"].shape[2]
            norm = weight_norm(module.base, DTYPES[backbone.precision.dtype], stream(0, "fast paths", layer))
            deviation = norm / (noise.shape[1] * width) ** 0.5
            size = max(0.1 * deviation, 0.5 * width**-0.5)
            factors[key] = noise * size * (3 * width / rank) ** 0.5 / module.scale
    return {key: tensor.to(backbone.device) for key, tensor in factors.items()}


def compute_outputs(clients: Clients, factors: Factors, paths: FastPaths, generate: bool) -> Outputs:
    """The outputs of the probe's devices, computed as a run with these fast paths computes them."""
    backbone = clients.backbone.with_paths(paths)
    clients = replace(clients, backbone=backbone, cache=PrefixCache(backbone))
    for k, shard in enumerate(clients.shards):
        clients.cache.fill(f"device {k}", shard, range(len(shard)))
    engine = replace(clients, backbone=backbone.replicas(2)[1]) if paths.parallel else clients
    rows = [list(range(len(shard))) for shard in clients.shards]
    devices = range(len(clients.shards))
    gradients = []
    for part in [list(devices)] if paths.stacking else [[k] for k in devices]:
        part_factors = {key: tensor[part] for key, tensor in factors.items()}
        _, gradient = loss_gradient(engine, part_factors, part, [rows[k] for k in part])
        gradients.append(torch.cat([gradient[key].flatten(1) for key in sorted(gradient)], 1))
    samples = [sample for shard in clients.shards for sample in shard]
    prompts = [sample.ids for sample in samples[:2]]
    texts = complete(clients, first_device(factors), prompts, 3) if generate else []
    return Outputs(torch.cat(gradients).cpu(), first_device_scores(engine, factors, samples), texts)


def shake(factors: Factors) -> Factors:
    """Factors changed at random by at most half a unit in bfloat16's last place. Random: stream (0, "shaken")."""
    rng = stream(0, "fast paths", "shaken")
    return {
        key: value * (1 + COARSE_EPS * (torch.rand(value.shape, generator=rng) - 0.5).to(value))
        for key, value in sorted(factors.items())
    }


def company_outputs(clients: Clients, factors: Factors, generate: bool) -> Outputs:
    """The outputs of the slow path, where every sample has another text of the same length beside it in the pass.

    Nothing is padded, so whatever differs from one sample at a time is rounding. texts: the first completion alone.
    """
    backbone = clients.backbone.with_paths(FastPaths(batching=True))
    gradients, scores, texts = [], [], list[str]()
    for k, shard in enumerate(clients.shards):
        leaves = {key: tensor[[k]].detach().requires_grad_() for key, tensor in factors.items()}
        total = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for sample in shard:
            pair = sample, replace(sample, ids=(*sample.ids[:1], *sample.ids[:0:-1]))
            local = replace(
                clients, backbone=backbone, cache=PrefixCache(backbone), shards=(pair,), task_of=clients.task_of[[k]]
            )
            loss, _ = row_losses(local, leaves, [0], [[0, 1]])
            parts = torch.autograd.grad(
                loss[0, 0] / len(shard), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            total = [a + b for a, b in zip(total, parts, strict=True)]
            scores.append(last_scores(local, first_device(factors), "probe", pair, [0, 1])[0])
            if generate and not texts:
                texts = complete(local, first_device(factors), [one.ids for one in pair], 3)[:1]
        gradient = dict(zip(leaves, total, strict=True))
        gradients.append(torch.cat([gradient[key].flatten(1) for key in sorted(gradient)], 1))
    return Outputs(torch.cat(gradients).cpu(), torch.stack(scores).cpu(), texts)


def first_device_scores(clients: Clients, factors: Factors, samples: Sequence[Encoding]) -> Float[Tensor, "n C"]:
    """Logits of samples by the first device's model."""
    indices = list(range(len(samples)))
    clients.cache.fill("probe", samples, indices)
    batches = [indices] if clients.backbone.paths.batching else [[index] for index in indices]
    return torch.cat([last_scores(clients, first_device(factors), "probe", samples, batch) for batch in batches]).cpu()


def first_device(factors: Factors) -> Factors:
    """The first device's factors."""
    return {key: tensor[:1] for key, tensor in factors.items()}


def repeat_error(clients: Clients, factors: Factors, reference: Outputs) -> float:
    """Difference of the longest sample's logits when it is computed again, relative to the largest logit."""
    slow = clients.backbone.with_paths(FastPaths())
    clients = replace(clients, backbone=slow, cache=PrefixCache(slow))
    scores = first_device_scores(clients, factors, [clients.shards[0][0]])[0]
    return float((scores - reference.scores[0]).abs().max() / reference.scores[0].abs().max())


def max_difference(outputs: Outputs, reference: Outputs) -> float:
    """The largest relative difference of a device's gradient or a sample's logits; infinite where one is NaN."""
    gradients = (outputs.gradients - reference.gradients).norm(dim=1) / reference.gradients.norm(dim=1)
    scores = (outputs.scores - reference.scores).abs().amax(1) / reference.scores.abs().amax(1)
    difference = float(torch.cat([gradients, scores]).max())
    return difference if difference == difference else float("inf")


def _reason(error: BaseException) -> str:
    """An exception's type and the first line of its text."""
    kind, line = type(error).__name__, first_line(error, 120)
    return kind if line == kind else f"{kind}: {line}"


def cache_key(
    clients: Clients, base: str, tokens: tuple[int, int], candidates: FastPaths, generate: bool
) -> dict[str, Any]:
    """All that a measurement depends on. tokens: numbers of tokens of the shortest and the longest text."""
    backbone = clients.backbone
    parameter = next(iter(backbone.model.parameters()))
    layers = {n: [*s, kind_of(backbone.layers[n].base)] for n, s in sorted(backbone.target_layers.items())}
    package = Path(__file__).parent.parent
    files = sorted([*(package / "model").glob("*.py"), *(package / "devices").glob("*.py")])
    return {
        "base": base,
        "code": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
        "versions": [version(name) for name in ("torch", "transformers", "peft", *quantisation_packages(backbone))],
        "layers": layers,
        "heads": {name: list(weight.shape) for name, weight in backbone.heads.items()},
        "entries": [[entry.layer, entry.kind, *entry.shape] for entry in clients.layout.entries],
        "classes": sorted(set(clients.classes)),
        "prefix": len(backbone.prefix),
        "dtype": str(parameter.dtype),
        "precision": asdict(backbone.precision),
        "checkpointing": backbone.checkpointing,
        "device": str(parameter.device),
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "candidates": asdict(candidates),
        "generate": generate,
    }


def quantisation_packages(backbone: Backbone) -> list[str]:
    """The installed packages that may compute a quantised base's layers."""
    packages = sorted({row.package for row in QUANTISATIONS.values()}) if backbone.has_quantised_weights else []
    return [name for name in packages if find_spec(name) is not None]


def kind_of(module: Any) -> str:
    """A layer's class and the class of its weight, which tells a quantised layer."""
    return f"{type(module).__name__}({type(module.weight).__name__})"


def parse_measurement(text: str) -> Measurement:
    """A measurement from JSON. Raises ValueError, KeyError or TypeError where the text holds none."""
    tree = json.loads(text)
    paths = FastPaths(**tree["paths"])
    if any(type(getattr(paths, item.name)) is not bool for item in fields(FastPaths)):
        raise TypeError("a path is used or not")
    rejected = {str(name): str(reason) for name, reason in tree["rejected"].items()}
    return Measurement(paths, float(tree["error"]), rejected, float(tree["tolerance"]))


def candidate_paths(backbone: Backbone, stacking: bool) -> FastPaths:
    """The fast paths to try on a base. stacking: whether the run computes several devices in a pass.

    Samples are packed end to end on a CPU only: on a GPU, many small products per layer (one per device) would cost
    more than padding. Classifiers try the padding side of their tokenizer first. A layer that is computed again in the
    backward pass is computed whole.
    """
    plain = [
        plain_matrix(layer.base) is not None for layer in backbone.layers.values() if isinstance(layer, StackedLoRA)
    ]
    cpu, causal = backbone.device.type == "cpu", backbone.causal
    return FastPaths(
        prefix=bool(backbone.prefix),
        packing=causal and cpu,
        last_layer=not backbone.checkpointing,
        stacking=stacking,
        batching=True,
        pad_left=causal or getattr(backbone.tokenizer, "padding_side", "right") == "left",
        parallel=cpu,
        fused=any(plain),
        decoding=causal,
    )


def report_lines(base: str, result: Measurement) -> list[str]:
    """Lines about a measurement for the user; none where all candidates are used and agree closely."""
    if result.rejected:
        parts = [f"without {DESCRIPTIONS[name]} ({reason})" for name, reason in result.rejected.items()]
        return [f"{base}: computed {', '.join(parts)}: slower, and right to {result.error:.0e}"]
    if result.error > REPORTED:
        return [f"{base}: gradients and logits are within {result.error:.1e} of one sample at a time"]
    return []
