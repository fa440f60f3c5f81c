"""What is measured in one process: the round against a centralised PEFT step, and a round's time outside the model."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from central import agreement, best_micro_batch, central, samples_of, train_step
from fleets import from_file, random_tokens
from harness import Spent, interleaved, quartiles, ratio, spent, summary

from airpfed.core import run_files
from airpfed.devices.clients import draw_batches
from airpfed.devices.parallel import worker_count
from airpfed.experiment.build.blocks import plan_blocks
from airpfed.model.backbone import layer_stack
from airpfed.model.tokens import batched, pack
from airpfed.training import checkpoint
from airpfed.training.loop import play_round
from airpfed.training.setup import RoundGradients, TrainingSetup, simulate_gradients
from airpfed.training.state import State


@dataclass(frozen=True)
class Options:
    """What all cases are told. base: in place of the cases' own models; file: of the real data. 0 pairs: the case's."""

    quick: bool
    base: str
    file: Path
    pairs: int
    max_devices: int
    memory_gb: float
    timeout_s: float

    def turns(self, usual: int) -> int:
        """Pairs of a case that usually takes so many."""
        return self.pairs or (min(usual, 2) if self.quick else usual)


FULL_LENGTH = (("minilm", 20, 8, 32), ("smollm2-135m", 16, 4, 48))
"""(base model, devices, samples of a device, tokens of a sample)."""
QUICK_FULL_LENGTH = (("minilm", 4, 2, 16),)
"""Of --quick, which also takes MiniLM for the real data, four devices and two samples each."""
REAL_DATA = {"all layers": ("all", 0.60), "top third": ("last-10", 0.30)}
"""Where adapters are -> setting, goal."""
ALIKE = 1e-4
"""Gradients that differ by more, relative, are not timed; float32 gives 1e-6 to 1e-5."""
MICRO_BATCHES = (8, 16, 32, 64)
"""Samples of a forward pass that PEFT's step is tried at; fewer where a round has fewer."""


class Rounds:
    """The rounds of an experiment one after another, and what their gradients took."""

    def __init__(self, made: TrainingSetup) -> None:
        self.made = replace(made, collect=self.collect)
        self.state: State = made.initial
        self.before = self.state
        self.gradients: list[Spent] = []

    def collect(self, made: TrainingSetup, state: State) -> RoundGradients:
        kept: list[RoundGradients] = []
        self.gradients.append(spent(lambda: kept.append(simulate_gradients(made, state))))
        return kept[0]

    def play(self, _pair: int) -> None:
        self.before = self.state
        self.state, _ = play_round(self.made, self.state)


def against_peft(settings: Any, made: TrainingSetup, pairs: int, all_logits: bool = False) -> dict[str, Any]:
    """A round and one centralised PEFT step over the same samples, in turn; PEFT at the micro-batch it likes best.

    all_logits: a causal LM's PEFT step also as a trainer has it that computes the logits of every position.
    """
    one, rounds = central(settings, made), Rounds(made)
    difference = agreement(made, one)
    if not difference["whole"] < ALIKE:
        raise RuntimeError(f"the two gradients differ by {difference}: not the same work")
    searched = best_micro_batch(one, samples_of(made, made.initial.devices.cursors, 0), MICRO_BATCHES)
    print(f"  PEFT's CPU seconds by micro-batch: {searched}; gradients differ by {difference}", flush=True)

    def step(pair: int, every: bool = False) -> None:
        train_step(one, samples_of(made, rounds.before.devices.cursors, pair), every)

    variants = {"round": rounds.play, "peft": step}
    if all_logits and one.causal:
        variants["all_logits"] = partial(step, every=True)
    turns = interleaved(variants, pairs)
    turns["gradients"] = rounds.gradients[-pairs:]
    found = summary(turns, against="peft")
    if "all_logits" in turns:
        ours, plain = ([one.wall for one in turns[key]] for key in ("round", "all_logits"))
        found["round"]["to_all_logits"] = asdict(ratio(ours, plain))
    print(f"  wall {found['round']['wall_ratio']}, CPU {found['round']['cpu_ratio']}", flush=True)
    return {
        "difference": difference,
        "micro_batch": one.micro_batch,
        "micro_batch_cpu_seconds": searched,
        "variants": found,
    }


def full_length(options: Options) -> dict[str, Any]:
    """Random tokens of one length, adapters in all layers: nothing to gain but from computing devices together."""
    rows = []
    for base, devices, batch, tokens in QUICK_FULL_LENGTH if options.quick else FULL_LENGTH:
        settings, made = random_tokens(options.base or base, devices, batch, tokens, {})
        row = {"base": options.base or base, "devices": devices, "batch": batch, "tokens": tokens, "goal": 1.05}
        rows.append(row | against_peft(settings, made, options.turns(15)))
    return {"rows": rows}


def real_data(options: Options) -> dict[str, Any]:
    """The data of a settings file, PEFT padded to the longest of its micro-batch; rounds draw new samples each."""
    rows = []
    for name, (layers, goal) in REAL_DATA.items():
        layers = "last-2" if options.quick and layers != "all" else layers
        overrides = [f"adapters.layers={layers}"]
        if options.quick and not options.base:
            overrides += ["model.base=minilm", 'adapters.target_modules=["query", "value"]']
        if options.quick:
            overrides += ["tasks.*.devices=1", "tasks.*.samples_per_device=8", "devices.batch_size=2"]
            overrides += ["tasks.*.dev_samples=0", "tasks.*.test_samples=4"]
        settings, made = from_file(options.file, overrides)
        filled = fill(made)
        found = against_peft(settings, made, options.turns(9), all_logits=True)
        step = found["variants"]["peft"]["cpu"]["median"]
        whole = filled.cpu + made.rounds * found["variants"]["round"]["cpu"]["median"]
        row = {"adapters": name, "layers": layers, "goal": goal, "fill": vars(filled), "rounds": made.rounds}
        row["tokens"], row["padded"] = token_counts(made, found["micro_batch"])
        rows.append(row | found | {"cpu_ratio_of_a_run": whole / (made.rounds * step)})
    return {"file": options.file.name, "rows": rows}


def token_counts(made: TrainingSetup, micro_batch: int) -> tuple[int, int]:
    """Of the first round's samples as they are computed here, and with PEFT's padding."""
    lengths = [len(one.ids) for one, _, _ in samples_of(made, made.initial.devices.cursors, 0)]
    clients, plan = (
        made.clients,
        draw_batches(made.clients, made.initial.devices.cursors, made.local_training.batch_size, 1)[0],
    )
    rows = [[clients.shards[k][i] for i in steps[0]] for k, steps in enumerate(plan)]
    ours = len(pack([sample for row in rows for sample in row], [len(row) for row in rows]).ids)
    return ours, sum(len(part) * max(part) for part in batched(lengths, micro_batch))


def fill(made: TrainingSetup) -> Spent:
    """What it takes to fill the frozen-prefix cache with every device's samples (nothing where it is off)."""
    clients = made.clients

    def work() -> None:
        for k, shard in enumerate(clients.shards):
            clients.cache.fill(f"device {k}", shard, range(len(shard)))

    return spent(work)


def compiled(options: Options) -> dict[str, Any]:
    """Gradients with the transformer layers below the last under `torch.compile`, in turn with the same as they are.

    The last one is another function in every pass (`forward.last_tokens_only`).
    """
    base, devices, batch, length = (QUICK_FULL_LENGTH if options.quick else FULL_LENGTH)[0]
    _, made = random_tokens(options.base or base, devices, batch, length, {})
    every = made.clients.backbone.replicas(worker_count(made.clients.backbone, made.devices_per_pass))
    below: list[Any] = [layer for one in every for layer in list(layer_stack(one.model)[1])[:-1]]
    plain = [layer._compiled_call_impl for layer in below]
    for layer in below:
        layer.compile()
    ready = [layer._compiled_call_impl for layer in below]

    def run(calls: list[Any], _pair: int) -> None:
        for layer, call in zip(below, calls, strict=True):
            layer._compiled_call_impl = call
        simulate_gradients(made, made.initial)

    first = spent(lambda: run(ready, 0))
    turns = interleaved({"compiled": partial(run, ready), "plain": partial(run, plain)}, options.turns(9))
    sizes = {"devices": devices, "batch": batch, "tokens": length}
    return {"base": options.base or base, **sizes, "first": vars(first), "variants": summary(turns, against="plain")}


def overhead(options: Options) -> dict[str, Any]:
    """Time of a round, its record and checkpoint that is not the model's forward and backward pass.

    Where passes run side by side, a core that waits for the others' end is not in a pass.
    """
    devices, batch, tokens, antennas, blocks = (8, 2, 16, 8, 50) if options.quick else (100, 8, 32, 64, 50)
    wanted: dict[str, dict[str, Any]] = {"radio": {"antennas": antennas}}
    settings, made = random_tokens(options.base or "minilm", devices, batch, tokens, wanted)
    uses = channel_uses(made)
    wanted["radio"]["coherence_symbols"] = -(-uses // blocks)
    settings, made = random_tokens(options.base or "minilm", devices, batch, tokens, wanted)
    state, rows, at_once = made.initial, [], worker_count(made.clients.backbone, made.devices_per_pass)
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.turns(3) + 1):
            kept: list[tuple[State, dict[str, float]]] = []
            with model_time(made, at_once) as passes:
                one = spent(partial(lambda kept, state: kept.append(whole_round(made, state, Path(name))), kept, state))
            state, phases = kept[0]
            rows.append({**vars(one), "model_wall": sum(passes) / at_once, "phases": phases})
    rows = rows[1:]
    assert all(0 < row["model_wall"] < row["wall"] for row in rows), "the model's passes were not seen"
    share = quartiles([1 - row["model_wall"] / row["wall"] for row in rows])
    phases = {name: median(row["phases"].get(name, 0.0) for row in rows) for name in rows[0]["phases"]}
    fields = {
        "devices": devices,
        "batch": batch,
        "tokens": tokens,
        "antennas": antennas,
        "design": settings.radio.design.label,
    }
    fields |= {
        "blocks": -(-uses // plan_blocks(settings.radio, devices).data_uses),
        "base": options.base or "minilm",
        "goal": 0.10,
    }
    return {**fields, "share": share, "phases": phases, "rounds": rows}


def channel_uses(made: TrainingSetup) -> int:
    """Channel uses of a round whose tasks take turns: half an entry a real one, group by group."""
    order, tasks = made.clients.layout, len(made.clients.classes)

    def slot(groups: tuple[tuple[int, int], ...]) -> int:
        return sum(-(-(last - first) // 2) for first, last in groups)

    return slot(order.groups("global")) + tasks * slot(order.groups("task"))


def whole_round(made: TrainingSetup, state: State, out: Path) -> tuple[State, dict[str, float]]:
    """A round as the loop of a run plays and keeps it."""
    state, row = play_round(made, state)
    begin = time.perf_counter()
    run_files.append_record(out / "records.jsonl", row)
    checkpoint.save_state(out / "checkpoint", state, made.seed, made.fingerprint)
    return state, {**row.seconds, "record and checkpoint": time.perf_counter() - begin}


@contextlib.contextmanager
def model_time(made: TrainingSetup, at_once: int) -> Iterator[list[float]]:
    """Wall seconds of every pass forward and backward over the base model within the block, `at_once` at a time."""
    seen = list[float]()

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seen.append(time.perf_counter() - begin)

        return run

    models, slope = [one.model for one in made.clients.backbone.replicas(at_once)], torch.autograd.grad
    for model in models:
        model.forward = timed(model.forward)
    torch.autograd.grad = timed(slope)  # type: ignore[assignment]
    try:
        yield seen
    finally:
        for model in models:
            del model.forward
        torch.autograd.grad = slope
