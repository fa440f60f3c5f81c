"""Every architecture of transformers, shrunk, with our adapters: gradients and exports held against PEFT.

    python benchmarks/architectures.py                  # all, and docs/models.md
    python benchmarks/architectures.py --part 3/10      # a tenth, by turns
    python benchmarks/architectures.py --only llama xlnet --out /dev/stdout
    python benchmarks/architectures.py --only llama gpt2 --held nf4 bfloat16

PEFT is asked as plainly as can be: one sample at a time, no padding, no cache. Exit code 1 if a number is wrong or
anything but a line for the user comes out.
"""

import argparse
import contextlib
import json
import os
import resource
import select
import signal
import string
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that wait by spinning cost most of the time

import torch
from harness import take_part
from shrink import END, SCALES, SPECIAL, shrink_config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.core.rng import stream
from airpfed.devices.clients import Clients
from airpfed.devices.evaluate import classify
from airpfed.devices.gradients import gradients
from airpfed.experiment import build
from airpfed.model import export
from airpfed.model.backbone import layer_stack
from airpfed.model.compatibility import auto_class
from airpfed.model.layers import is_linear
from airpfed.model.layout import Factors, Vectors, gather, unflatten
from airpfed.model.precision import QUANTISATIONS, set_for_training
from airpfed.model.tokens import Encoding
from airpfed.tasks.sample import Sample, Task
from airpfed.training.setup import TrainingSetup

WRONG = 1e-4
"""Largest relative difference from PEFT that is rounding."""

REPORTED = 1e-5
"""From which on a difference is printed."""

MAX_TOKENS = 24
SHORT, LONGER = 3, 8
"""Tokens of the shortest text: few, or as many as those models need that fail on fewer by themselves."""

RANK = 2
LAYERS = ("all", "last-1")
PASSES = {"together": (0, 1), "alone": (1, 1), "side by side": (0, 2)}
"""`devices.chunk` and threads: one stack of all devices, each device by itself, two stacks in modules of their own."""

HELD: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "nf4": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
    "torchao int8": {"quantization": "torchao_int8"},
    "nf4, bfloat16, recomputed": {"quantization": "nf4", "dtype": "bfloat16", "checkpointing": True},
    "recomputed": {"checkpointing": True},
}
"""Ways of holding the weights and the values of the backward pass, by the settings of `model` that ask for them."""

PLAIN: dict[str, Any] = {}

OTHER = "refused by design"
RESULTS = ("right and fast", "right and slow", "refused", OTHER, "WRONG", "TRACEBACK", "not built")
FAULTS = ("WRONG", "TRACEBACK")
"""Results that are faults of ours: they are printed for every setting, and end the command with exit code 1."""
SPACE = "\u0120"
"""How byte-level tokenizers write a space."""

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", SPACE, *string.ascii_lowercase]
TOKENS += [SPACE + letter for letter in string.ascii_lowercase]
assert TOKENS.index("</s>") == END and len(TOKENS) <= SPECIAL


@dataclass(frozen=True)
class Case:
    """An architecture: its name in transformers, a causal LM or a classifier, the class of the model."""

    name: str
    kind: str
    model: str
    inside: str = ""


@dataclass
class Row:
    """What came of a case; modes: of each setting of layers and passes, its result, error and note. held: of each way
    in which the base was held otherwise than in float32.
    """

    name: str
    kind: str
    model: str
    result: str = "not built"
    error: float = 0.0
    note: str = ""
    modes: dict[str, tuple[str, float, str]] = field(default_factory=dict)
    held: dict[str, tuple[str, float, str]] = field(default_factory=dict)


@cache
def cases() -> tuple[Case, ...]:
    """All classes of the mappings, each once, and the text stacks of image-text models where they are another class."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    by_model: dict[tuple[str, str], Case] = {}
    for kind, mapping in (
        ("causal", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("classifier", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    ):
        for name, model in mapping.items():
            by_model.setdefault((kind, model), Case(name, kind, model))
    for name, model in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        by_model.setdefault(("causal", model), Case(name, "causal", model))
        try:
            text_type = CONFIG_MAPPING[name]().get_text_config(decoder=True).model_type
        except Exception:
            continue  # its class, if it is in a mapping above, says why
        text_model = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text_type)
        if text_model is not None and text_type != name:
            by_model.setdefault(("causal", text_model), Case(text_type, "causal", text_model, inside=name))
    return tuple(sorted(by_model.values(), key=lambda case: (case.kind, case.model.lower())))


def save_tiny_model(case: Case, folder: Path) -> str:
    """Save a shrunk model with random weights and a tokenizer; returns "" or why it cannot be built."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_class = getattr(transformers, case.model)
    reasons = []
    # At best one that decodes with a cache, too: a few layers of a hybrid may all be of one kind.
    ways = ({}, cacheless(case.kind)) if case.kind == "causal" else ({},)
    for way, scale in product(ways, SCALES):
        try:
            torch.manual_seed(0)
            config = shrink_config(defaults(CONFIG_MAPPING[case.name], case.kind, model_class.config_class), scale)
            config.pad_token_id = 0
            model = model_class._from_config(config).eval()
            randomise(model)
            ids = torch.tensor([[*range(20, 30), END]])
            with torch.no_grad():
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **way).logits
            if not out.isfinite().all():
                raise ValueError("its logits are no numbers")
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {one_line(error)}")
            continue
        base = getattr(model, model.base_model_prefix, None) if case.kind == "classifier" else None
        (model if base is None else base).save_pretrained(folder)
        save_tokenizer(folder)
        return ""
    return reasons[0]


def defaults(config: Any, kind: str, config_class: type | None = None) -> Any:
    """A config as its class gives it, or the part of it of the class that is wanted.

    One that may be an encoder or a decoder is what the mapping wants it for.
    """
    config_part = config()
    if config_class is not None and not isinstance(config_part, config_class):
        parts = [getattr(config_part, name) for name in config_part.sub_configs]
        config_part = next((part for part in parts if isinstance(part, config_class)), config_part)
    if kind == "causal" and hasattr(config_part, "is_decoder"):
        config_part.is_decoder = True
    return config_part


def cacheless(kind: str) -> dict[str, bool]:
    """What our passes tell a causal LM."""
    return {"use_cache": False} if kind == "causal" else {}


def one_line(error: BaseException) -> str:
    """The last line of an exception's text that says something."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def randomise(model: nn.Module) -> None:
    """Weights so large that every token reads every other: from the usual start, attention is nearly even."""
    rng = torch.Generator().manual_seed(1)
    done: set[int] = set()
    with torch.no_grad():
        for value in model.parameters():
            if value.data_ptr() in done or not value.is_floating_point():
                continue
            done.add(value.data_ptr())
            noise = torch.randn(value.shape, generator=rng)
            if value.dim() < 2:
                value.add_(0.1 * noise)
            else:
                value.copy_(noise * value[0].numel() ** -0.5)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.0  # as training leaves it


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [(SPACE, letter) for letter in string.ascii_lowercase]
    words = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, letters, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", padding_side="left"
    ).save_pretrained(folder)


def texts(lengths: Sequence[int], name: str) -> list[str]:
    """Random letters, a token each; the samples of one device begin alike."""
    rng = stream(0, "architectures", name)
    draws = [torch.randint(26, (length - 2,), generator=rng).tolist() for length in lengths]
    return [" ".join(["x", "y", *(string.ascii_lowercase[i] for i in row)]) for row in draws]


def tasks_of(causal: bool, shortest: int = SHORT) -> tuple[Task, ...]:
    """Three devices with unequally many samples, one as short and one as long as can be, and one of another task."""
    lengths = ((shortest + 2, MAX_TOKENS, 9), (13,), (shortest, 18))
    labels, pair_words = (" red", " blue", " it"), (" good", " no")
    shards, number = [], 0
    for device, device_lengths in enumerate(lengths):
        shard = []
        for text in texts(device_lengths, f"device {device}"):
            shard.append(Sample(text, labels[number % 3], number % 3))
            number += 1
        shards.append(tuple(shard))
    first = Task("classes", "classify", labels, tuple(shards), (), (), "")
    prompts = texts((max(6, shortest), 11), "other")
    if causal:
        other = tuple(Sample(text, answer) for text, answer in zip(prompts, (" is it", " red"), strict=True))
        return first, Task("words", "generate", (), (other,), (), (), "")
    other = tuple(Sample(text, pair_words[i], i) for i, text in enumerate(prompts))
    return first, Task("pairs", "classify", pair_words, (other,), (), (), "")


def settings_of(
    case: Case, folder: Path, targets: Sequence[str], layers: str, held: dict[str, Any] = PLAIN
) -> Settings:
    """As a user would write them; every device trains all its factors by itself, so that they can be unlike."""
    names = [task.name for task in tasks_of(case.kind == "causal")]
    return Settings.model_validate(
        {
            "model": {"base": str(folder), "kind": case.kind, "max_tokens": MAX_TOKENS, **held},
            "adapters": {
                "method": "local",
                "head": "device",
                "rank_shared": RANK // 2,
                "rank_personal": RANK - RANK // 2,
                "alpha": float(RANK),
                "target_modules": tuple(targets),
                "layers": layers,
            },
            "tasks": [
                {"name": name, "devices": count, "dev_samples": 0, "test_samples": 1}
                for name, count in zip(names, (3, 1), strict=True)
            ],
            "devices": {"batch_size": 4},
            "radio": {"scheme": "error_free"},
            "run": {"threads": 1, "device": "cpu"},
        }
    )


def targets_of(folder: Path, kind: str) -> tuple[list[str], list[str], int]:
    """Short names of all linear layers in the model's list of layers; the ones that PEFT can adapt; the shortest text.

    Where the model has no linear layer at all, some name: what we say to that is the result.
    """
    from transformers import AutoConfig

    try:
        model = auto_class(AutoConfig.from_pretrained(folder), kind == "causal").from_pretrained(folder).eval()
        stack_name, stack = layer_stack(model)
    except Exception:
        return ["q_proj"], ["q_proj"], SHORT
    linear: dict[str, list[str]] = {}
    for name, module in stack.named_modules():
        if is_linear(module):
            linear.setdefault(name.rpartition(".")[2], []).append(f"{stack_name}.{name}")
    names, shortest = (
        sorted(linear),
        SHORT if all(map(partial(model_runs, model, kind), (SHORT, SHORT + 2))) else LONGER,
    )
    if not names:
        return ["q_proj"], ["q_proj"], shortest
    if peft_supports(model, list(chain.from_iterable(linear.values())), kind):
        return names, names, shortest
    return names, [name for name in names if peft_supports(model, linear[name], kind)], shortest


def model_runs(model: Any, kind: str, length: int) -> bool:
    """Whether a model takes a text of so many tokens, by itself."""
    ids = torch.tensor([[*range(20, 19 + length), END]])
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **cacheless(kind))
    except Exception:
        return False
    return True


def peft_supports(model: Any, layers: list[str], kind: str) -> bool:
    """Whether PEFT puts its adapters on just these layers, the model runs with them, and a file brings them back."""
    import peft

    config = peft.LoraConfig(r=1, target_modules=layers, init_lora_weights=False)
    try:
        adapted = peft.get_peft_model(deepcopy(model), config)
        wrapped = {n for n, m in adapted.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
        if wrapped != set(layers) or not model_runs(adapted, kind, 11):
            return False
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            reloaded = peft.PeftModel.from_pretrained(deepcopy(model), folder).state_dict()
    except Exception:
        return False
    return all(torch.equal(reloaded[key], value) for key, value in adapted.state_dict().items() if "lora_" in key)


def random_vectors(experiment: TrainingSetup) -> Vectors:
    """Values of all devices, none alike and none zero."""
    clients = experiment.clients
    rng = stream(0, "architectures", "factors")
    vectors: Vectors = {}
    for scope in ("global", "task", "device", "frozen"):
        count = {"global": 1, "frozen": 1, "task": len(experiment.tasks), "device": len(clients.shards)}[scope]
        vectors[scope] = torch.zeros(count, clients.layout.size(scope))
    for entry in clients.layout.entries:
        columns = vectors[entry.scope][:, entry.start : entry.stop]
        width = entry.shape[1] if entry.kind != "B" else 4
        columns.copy_(torch.randn(columns.shape, generator=rng) * width**-0.5)
    return vectors


def factors_of(clients: Clients, vectors: Vectors, device: int) -> Factors:
    index = torch.tensor([device])
    return gather(vectors, clients.layout, clients.task_of[index], index)


@dataclass
class Plain:
    """PEFT's model of a base, as a user of PEFT has it."""

    model: Any
    causal: bool
    heads: tuple[str, ...]

    def module(self, layer: str) -> Any:
        return self.model.base_model.model.get_submodule(layer)

    def put(self, factors: Factors) -> None:
        """These factors (of one device) in PEFT's places."""
        with torch.no_grad():
            for key, value in factors.items():
                layer, _, kind = key.rpartition(".")
                if kind == "head":
                    head = self.module(layer).modules_to_save["default"]
                    head.weight.copy_(value[0, :, : head.in_features])
                    if head.bias is not None:
                        head.bias.copy_(value[0, :, -1])
                else:
                    (self.module(layer).lora_A if kind == "A" else self.module(layer).lora_B)["default"].weight.copy_(
                        value[0]
                    )

    def gradient(self, template: Factors) -> Factors:
        """What autograd left, by the names of our factors; zeros where nothing depends on a factor."""
        gradients: Factors = {}
        for key, value in template.items():
            layer, _, kind = key.rpartition(".")
            if kind == "head":
                head = self.module(layer).modules_to_save["default"]
                parts = [grad(head.weight)] + ([grad(head.bias)[:, None]] if head.bias is not None else [])
                gradients[key] = torch.cat(parts, 1)
            else:
                gradients[key] = grad(
                    (self.module(layer).lora_A if kind == "A" else self.module(layer).lora_B)["default"].weight
                )
            assert gradients[key].shape == value[0].shape
        return gradients

    def scores(self, sample: Encoding) -> Tensor:
        """Logits of one sample by itself: of its last positions, or of the classes."""
        ids = torch.tensor([sample.ids])
        fields: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out: Tensor = self.model(**fields, **cacheless("causal" if self.causal else "classifier")).logits
        return out[0, -len(sample.targets) :] if self.causal else out[:1]

    def losses(self, samples: Sequence[Encoding], classes: int) -> Tensor:
        """The mean over samples of each one's mean over its targets."""
        each = []
        for sample in samples:
            scores = self.scores(sample)
            scores = scores[:, :classes] if classes else scores
            each.append(cross_entropy(scores, torch.tensor(sample.targets)))
        return torch.stack(each).mean()


def grad(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def peft_model(experiment: TrainingSetup, settings: Settings) -> Plain:
    """A base loaded anew, and PEFT's adapters of the same rank and scale on the same layers."""
    import peft

    backbone = experiment.clients.backbone
    base = export.fresh_base(backbone, max(max(experiment.clients.classes), 1))
    base.config.pad_token_id = backbone.tokenizer.pad_token_id
    total = settings.adapters.rank_shared + settings.adapters.rank_personal
    config = peft.LoraConfig(
        r=total,
        lora_alpha=settings.adapters.alpha,
        lora_dropout=0.0,
        target_modules=list(backbone.target_layers),
        modules_to_save=list(backbone.heads) or None,
    )
    copy_new_values(base, backbone)
    model = peft.get_peft_model(base, config).eval()
    set_for_training(model)
    return Plain(model, backbone.causal, tuple(backbone.heads))


def copy_new_values(base: nn.Module, backbone: Any) -> None:
    """What no file holds (a pooler, say) is drawn anew by every load: the values that our model has."""
    ours = {
        name.replace(".base.", ".").replace(".layer_of_prefix.", "."): v
        for name, v in backbone.model.state_dict().items()
    }
    with torch.no_grad():
        for name, value in base.named_parameters():
            if name in ours and ours[name].shape == value.shape and type(value) is nn.Parameter:
                value.copy_(ours[name])


def peft_gradients(plain: Plain, experiment: TrainingSetup, vectors: Vectors) -> list[Factors]:
    """PEFT's gradients, a device each."""
    clients = experiment.clients
    gradients_of_devices = []
    for device, shard in enumerate(clients.shards):
        factors = factors_of(clients, vectors, device)
        plain.put(factors)
        plain.model.zero_grad(set_to_none=True)
        loss = plain.losses(shard, clients.classes[int(clients.task_of[device])])
        if loss.requires_grad:
            loss.backward()
        gradients_of_devices.append({key: value.clone() for key, value in plain.gradient(factors).items()})
    return gradients_of_devices


def relative_error(ours: Factors, theirs: Sequence[Factors]) -> float:
    """||ours - PEFT's|| / ||PEFT's|| of the device with the largest."""
    largest_ratio = 0.0
    for device, gradient in enumerate(theirs):
        difference = (
            sum(float((ours[key][device].double() - gradient[key].double()).norm()) ** 2 for key in gradient) ** 0.5
        )
        size = sum(float(gradient[key].double().norm()) ** 2 for key in gradient) ** 0.5
        ratio = difference / size if size else float("nan")  # adapters that nothing depends on
        largest_ratio = ratio if not ratio <= largest_ratio else largest_ratio  # NaN counts as the largest
    return largest_ratio


def our_gradients(experiment: TrainingSetup, vectors: Vectors, chunk: int, threads: int) -> Factors:
    """Our gradients through the path of a run."""
    clients = experiment.clients
    plan = [[list(range(len(shard)))] for shard in clients.shards]
    torch.set_num_threads(threads)
    try:
        vectors_of_gradients, _ = gradients(clients, vectors, plan, 1.0, chunk)
    finally:
        torch.set_num_threads(1)
    return unflatten(vectors_of_gradients, clients.layout)


def unused_paths(experiment: TrainingSetup) -> str:
    """Which fast ways of computing this base goes without."""
    from airpfed.devices import fast_paths

    backbone = experiment.clients.backbone
    candidates = fast_paths.candidate_paths(backbone, True)
    unused = [way for way in fast_paths.DESCRIPTIONS if getattr(candidates, way) and not getattr(backbone.paths, way)]
    return "without " + ", ".join(unused) if unused else ""


def check_case(case: Case, row: Row, held: Sequence[str]) -> None:
    """Everything of one case; results go into the row. held: keys of `HELD`."""
    with tempfile.TemporaryDirectory(prefix="airpfed-architectures-") as work:
        folder = Path(work) / "base"
        folder.mkdir()
        os.environ["AIRPFED_CACHE"] = f"{work}/cache"
        row.note = save_tiny_model(case, folder)
        if row.note:
            return
        row.result = "TRACEBACK"
        other = is_other_kind(folder)
        all_targets, targets, shortest = targets_of(folder, case.kind)
        for layers in LAYERS if targets else ():
            check_layers(case, row.modes, folder, targets, layers, shortest)
        for name in held if targets and any(result.startswith("right") for result, _, _ in row.modes.values()) else ():
            modes: dict[str, tuple[str, float, str]] = {}
            check_layers(case, modes, folder, targets, "all", shortest, HELD[name])
            row.held[name] = max(modes.values(), key=lambda mode: (RESULTS.index(mode[0]), mode[1]))
        if all_targets != targets:
            excluded = ", ".join(sorted(set(all_targets) - set(targets)))
            check_refusal(
                case, row, folder, all_targets, shortest, f"with {excluded}", "not refused, and PEFT cannot hold it"
            )
        if shortest > SHORT:
            check_refusal(case, row, folder, targets, SHORT, "texts that the model takes in company only", "")
    worst = max(row.modes.values(), key=lambda mode: (RESULTS.index(mode[0]), mode[1]))
    row.result, row.error = OTHER if other and worst[0] == "refused" else worst[0], worst[1]
    row.note = summary({mode: note for mode, (_, _, note) in row.modes.items() if note})


def is_other_kind(folder: Path) -> bool:
    """Whether a base is neither a decoder nor an encoder of text alone, by its config."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    return bool(getattr(config, "is_encoder_decoder", False)) or config.get_text_config() is not config


def summary(notes: dict[str, str]) -> str:
    """Every note once, with the modes that it is of; all passes at one setting of layers are named by that."""
    modes_of_note: dict[str, list[str]] = {}
    for mode, note in notes.items():
        modes_of_note.setdefault(note, []).append(mode)
    parts = []
    for note, modes in modes_of_note.items():
        complete_layers = [layers for layers in LAYERS if {f"{layers}, {name}" for name in PASSES} <= set(modes)]
        remaining = [mode for mode in modes if mode.split(", ")[0] not in complete_layers]
        parts.append(
            note
            if complete_layers == list(LAYERS) and not remaining
            else f"{note} ({'; '.join(complete_layers + remaining)})"
        )
    return "; ".join(parts)


def check_layers(
    case: Case,
    modes: dict[str, tuple[str, float, str]],
    folder: Path,
    targets: Sequence[str],
    layers: str,
    shortest: int,
    held: dict[str, Any] = PLAIN,
) -> None:
    """All passes at one setting of layers."""
    step = "load"

    def put(mode: str, result: str, error: float = 0.0, note: str = "") -> None:
        modes[f"{layers}, {mode}"] = (result, error, note)

    try:
        settings = settings_of(case, folder, targets, layers, held)
        experiment = build.build_experiment(settings, tasks_of(case.kind == "causal", shortest))
        vectors = random_vectors(experiment)
        step = "PEFT"
        plain = peft_model(experiment, settings)
        theirs = peft_gradients(plain, experiment, vectors)
        unused = unused_paths(experiment)
        right = "right and slow" if unused else "right and fast"
        noise = cache(partial(peft_rounding, plain, experiment, vectors, theirs))
        for mode, (chunk, threads) in PASSES.items():
            try:
                error = relative_error(
                    our_gradients(with_fresh_cache(experiment), vectors, chunk or experiment.devices_per_pass, threads),
                    theirs,
                )
            except UserError as refusal:
                put(mode, "refused", 0.0, plain_line(refusal, folder))
            except Exception as failure:
                put(mode, "TRACEBACK", 0.0, describe(failure))
            else:
                rounding = 0.0 if error <= REPORTED else noise()
                note = f"PEFT's own rounding: {rounding:.0e}" if rounding > REPORTED else ""
                fine = error <= max(WRONG, 3 * rounding)
                put(mode, right if fine else "WRONG", error, "; ".join(filter(None, (note, unused))))
        step = "answers"
        wrong, total = count_wrong_answers(experiment, vectors, plain)
        put(
            "answers",
            "WRONG" if wrong else "right and fast",
            0.0,
            f"{wrong} of {total} answers differ" if wrong else "",
        )
        step = "export"
        error = export_error(experiment, settings, vectors, plain, folder.parent / layers)
        put("export", "right and fast" if error <= experiment.clients.backbone.tolerance else "WRONG", error)
    except UserError as refusal:
        late = step == "export"
        put(step, "WRONG" if late else "refused", 0.0, "too late: " * late + plain_line(refusal, folder))
    except Exception as failure:
        put(step, "TRACEBACK", 0.0, describe(failure))


def peft_rounding(plain: Plain, experiment: TrainingSetup, vectors: Vectors, theirs: Sequence[Factors]) -> float:
    """How far PEFT's gradient is from itself: again (a model may be random), in float64, and with weights rounded anew.

    A float32 weight is known to half a unit in its last place; what such a change of all weights does to the gradient
    is rounding, too, and no arithmetic is nearer than that.
    """
    weights, buffers = list(plain.model.parameters()), list(plain.model.buffers())
    changes: list[tuple[list[Any], Callable[[Tensor], Tensor]]] = [
        ([], torch.clone),
        (weights + buffers, Tensor.double),
    ]
    changes += [(weights, partial(rounded_anew, rng=torch.Generator().manual_seed(seed))) for seed in range(3)]
    errors = [0.0]
    for tensors, change in changes:
        try:
            with with_numbers(tensors, change):
                repeated = peft_gradients(plain, experiment, vectors)
        except (RuntimeError, ValueError, AttributeError):  # a model that has a type in its code
            continue
        errors.append(
            relative_error({key: torch.stack([factors[key] for factors in theirs]) for key in theirs[0]}, repeated)
        )
    return max(errors)


@contextlib.contextmanager
def with_numbers(tensors: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A model's tensors of plain numbers, changed in place, because some models cannot be copied after a pass."""
    before = [
        (item, item.data) for item in tensors if item.is_floating_point() and type(item) in (Tensor, nn.Parameter)
    ]
    try:
        for item, data in before:
            item.data = change(data)
        yield
    finally:
        for item, data in before:
            item.data = data


def rounded_anew(value: Tensor, rng: torch.Generator) -> Tensor:
    """Numbers changed at random by at most half a unit in the last place of their type."""
    change = torch.finfo(value.dtype).eps * (torch.rand(value.shape, generator=rng, dtype=torch.double) - 0.5)
    return (value.double() * (1 + change)).to(value.dtype)


def check_refusal(
    case: Case, row: Row, folder: Path, targets: Sequence[str], shortest: int, mode: str, fault: str
) -> None:
    """What there is nothing to compare with: a line for the user, or (where it is no fault) that it runs."""
    try:
        experiment = build.build_experiment(
            settings_of(case, folder, targets, "all"), tasks_of(case.kind == "causal", shortest)
        )
        our_gradients(experiment, random_vectors(experiment), 1, 1)
        row.modes[mode] = ("TRACEBACK" if fault else "right and fast", 0.0, fault)
    except UserError as refusal:
        note = plain_line(refusal, folder)
        row.modes[mode] = ("right and fast" if row.modes else "refused", 0.0, "" if row.modes else note)
    except Exception as failure:
        row.modes[mode] = ("TRACEBACK", 0.0, describe(failure))


def plain_line(refusal: UserError, folder: Path) -> str:
    """Our line without a temporary folder's name."""
    return str(refusal).replace(str(folder), "BASE").replace(f"{folder.parent}/", "")


def with_fresh_cache(experiment: TrainingSetup) -> TrainingSetup:
    return replace(experiment, clients=replace(experiment.clients, cache=experiment.clients.cache.fresh()))


def describe(failure: BaseException) -> str:
    """An exception in a line, with the place in our code that it passed last."""
    frames = [f for f in traceback.extract_tb(failure.__traceback__) if "/airpfed/" in f.filename]
    last = frames[-1] if frames else traceback.extract_tb(failure.__traceback__)[-1]
    return f"{type(failure).__name__}: {one_line(failure)} [{Path(last.filename).name}: {last.name}]"


def count_wrong_answers(experiment: TrainingSetup, vectors: Vectors, plain: Plain) -> tuple[int, int]:
    """How many answers of the first device's model differ from PEFT's, where the best two are clearly apart."""
    clients = experiment.clients
    factors = factors_of(clients, vectors, 0)
    plain.put(factors)
    samples = [s for k in range(3) for s in clients.shards[k]]
    samples = [Encoding(sample.ids, (0,)) for sample in samples]
    choices = list(experiment.tasks[0].choices)
    our_answers = classify(with_fresh_cache(experiment).clients, factors, "answers", samples, choices)
    wrong = 0
    with torch.no_grad():
        for sample, answer in zip(samples, our_answers, strict=True):
            scores = plain.scores(sample)[-1, choices].float()
            best, second = scores.topk(2).values.tolist()
            margin = max(1e-3, 10 * clients.backbone.tolerance)
            wrong += int(best - second > margin * abs(best) and int(scores.argmax()) != answer)
    return wrong, len(samples)


def export_error(experiment: TrainingSetup, settings: Settings, vectors: Vectors, plain: Plain, folder: Path) -> float:
    """The largest difference of logits between the reloaded export and PEFT's own model, over the largest logit."""
    clients = experiment.clients
    classes = clients.classes[0]
    factors = factors_of(clients, vectors, 0)
    base = export.fresh_base(clients.backbone, classes)
    samples = list(clients.shards[0])
    reloaded = export.export_adapter(clients.backbone, factors, classes, settings.adapters.alpha, folder, base, samples)
    plain.put(factors)
    reloaded_plain = Plain(reloaded, plain.causal, plain.heads)
    largest = 0.0
    with torch.no_grad():
        for sample in samples:
            a, b = plain.scores(sample), reloaded_plain.scores(sample)
            largest = max(largest, float((a - b).abs().max() / a.abs().max()))
    return largest


def preload() -> None:
    """What every child would import again."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=9, **sizes))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]))(torch.arange(5)[None])
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=9, **sizes))
    bert(torch.arange(5)[None])
    assert transformers.MambaForCausalLM and transformers.MixtralForCausalLM


@dataclass
class Child:
    """A case at work in a process of its own."""

    case: Case
    pid: int
    pipe: int
    begin: float
    data: bytes = b""


def fork(case: Case, seconds: int, gigabytes: float, held: Sequence[str]) -> Child:
    """Start a case; its row comes through the pipe as JSON."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        return Child(case, pid, out, time.monotonic())
    code = 1
    try:
        os.close(out)
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
        row = Row(case.name, case.kind, case.model)
        try:
            check_case(case, row, held)
        except BaseException as failure:
            row.result, row.note = "TRACEBACK", describe(failure)
        with os.fdopen(into, "wb") as file:
            file.write(json.dumps(asdict(row)).encode())
        code = 0
    finally:
        os._exit(code)


def collect_row(child: Child, reason: str = "") -> Row:
    """The row of a child that has ended, or was ended for a reason."""
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    if child.data and not reason:
        return Row(**json.loads(child.data))
    reason = reason or (f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status}")
    return Row(child.case.name, child.case.kind, child.case.model, "TRACEBACK", 0.0, f"ended by {reason}")


def run_cases(
    todo: Sequence[Case], jobs: int, seconds: int, gigabytes: float, held: Callable[[Case], Sequence[str]]
) -> Iterator[Row]:
    """Rows of all cases, in the order in which they are done. held: keys of `HELD` to try on a case."""
    waiting, running = list(todo)[::-1], dict[int, Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                child = fork(case := waiting.pop(), seconds, gigabytes, held(case))
                running[child.pipe] = child
            ready, _, _ = select.select(list(running), [], [], 1.0)
            for pipe in ready:
                data = os.read(pipe, 1 << 16)
                running[pipe].data += data
                if not data:
                    yield collect_row(running.pop(pipe))
            for pipe, child in list(running.items()):
                if time.monotonic() - child.begin > 10 * seconds:
                    os.killpg(child.pid, signal.SIGKILL)
                    yield collect_row(running.pop(pipe), "the time limit")
    finally:
        for child in running.values():
            os.killpg(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


def page(rows: Sequence[Row]) -> str:
    """docs/models.md."""
    import peft
    import transformers

    counts = Counter(row.result for row in rows)
    lines = [
        "# Models",
        "",
        "Made by `python benchmarks/architectures.py` (CPU, float32; "
        f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}): every class in "
        "transformers' mappings of causal LMs and of sequence classifiers, and the text stacks of its image-text "
        "models, alone and inside of these. Each class is shrunk by one rule over the names and types of its config's "
        "attributes and gets random "
        "weights. Four devices have different random factors, different numbers of samples, and texts of "
        f"{SHORT} to {MAX_TOKENS} tokens. Adapters are on all linear layers of the transformer layers that PEFT can "
        'adapt, with `layers = "all"` and `"last-1"`, `devices.chunk` 0 and 1, one thread and two. Gradients, answers '
        "and the exported adapter after reloading are compared with PEFT, which computes one sample at a time without "
        "padding.",
        "",
        "error: ||ours - PEFT's|| / ||PEFT's|| over a device's gradient, for the worst device and setting; wrong above "
        f"{WRONG:.0e}, or above three times PEFT's own difference from itself (asked again, in float64, with weights "
        "rounded anew) where that is more. Fast: all "
        "fast paths that are tried on a base before round 1 are used. Slow: the fast paths in the note gave other "
        "numbers and are not used. Refused: before round 1, with one line for the user. Refused by design: the same "
        "for encoder-decoders and models of sound or other things, because a base is a decoder or an encoder of text, "
        "or a decoder of images and text, of which the text layers get adapters. "
        "Not built: the class has no model of this rule's sizes, or needs a package that is not installed.",
        "",
        share(rows),
        "",
        "| result | causal LMs | classifiers | all |",
        "|---|---|---|---|",
    ]
    for result in RESULTS:
        kinds = [sum(row.result == result and row.kind == kind for row in rows) for kind in ("causal", "classifier")]
        lines.append(f"| {result} | {kinds[0]} | {kinds[1]} | {counts[result]} |")
    lines += held_section(rows)
    for kind, title in (("causal", "Causal LMs"), ("classifier", "Classifiers")):
        lines += ["", f"## {title}", *table([row for row in rows if row.kind == kind and row.result != OTHER])]
    lines += ["", "## Other kinds, refused by design", *table([row for row in rows if row.result == OTHER])]
    return "\n".join(lines) + "\n"


def held_section(rows: Sequence[Row]) -> list[str]:
    """The part of the page on bases that are held otherwise, and each row where one of them is not right."""
    names = [name for name in HELD if any(name in row.held for row in rows)]
    if not names:
        return []
    lines = [
        "",
        "## Other weights",
        "",
        'The same comparison (all layers) on the same base, held otherwise by both sides: `model.dtype = "bfloat16"`, '
        "`model.quantization`, `model.checkpointing` (recomputed). nf4 and both int8 are float32 outside of the "
        "quantised layers, unless named otherwise. In bfloat16 and int8 PEFT's own difference from itself is larger "
        "than 1e-4, and a number is wrong above three times that. error: the largest of the classes that are right. "
        "The first columns tell how many classes were tried.",
        "",
        "| weights | right and fast | right and slow | refused | WRONG | TRACEBACK | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        results = [row.held[name] for row in rows if name in row.held]
        count = Counter(result for result, _, _ in results)
        right = [error for result, error, _ in results if result.startswith("right")]
        columns = [str(count[key]) for key in ("right and fast", "right and slow", "refused", "WRONG", "TRACEBACK")]
        lines.append(f"| {name} | {' | '.join(columns)} | {max(right, default=0.0):.0e} |")
    for row in rows:
        for name, (result, error, note) in row.held.items():
            if result not in ("right and fast", "right and slow"):
                lines += [f"- `{row.model}`, {name}: {result} {error:.0e} {note}"]
    return lines


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a table, a class each."""
    lines = ["", "| architecture | result | error | note |", "|---|---|---|---|"]
    for row in rows:
        note = row.note.replace("|", "\\|")
        lines.append(f"| `{row.model}` | {row.result} | {format_error(row)} | {note} |")
    return lines


def share(rows: Sequence[Row]) -> str:
    """How many of the decoders and encoders of text that could be built are refused."""
    counts = Counter(row.result for row in rows)
    total = len(rows) - counts[OTHER] - counts["not built"]
    refused = counts["refused"]
    return f"Refused of the text decoders and encoders: {refused} of {total}, {refused / max(1, total):.1%}."


def format_error(row: Row) -> str:
    """The error where it is more than rounding."""
    if not row.result.startswith(("right", "WRONG")):
        return ""
    return "<= 1e-5" if row.error <= REPORTED else f"{row.error:.0e}"


def select_cases(part: str, selection: Sequence[str]) -> list[Case]:
    """Every N-th case from the I-th on, for "I/N"; of these the ones named, if any are."""
    return [case for case in take_part(cases(), part) if not selection or {case.name, case.model} & set(selection)]


def can_hold(name: str) -> bool:
    """Whether the package that a way of holding the weights needs is installed."""
    row = QUANTISATIONS.get(HELD[name].get("quantization", ""))
    return row is None or find_spec(row.package) is not None


def main(words: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="model types or classes")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th architecture, from the I-th on")
    parser.add_argument("--out", type=Path, default=None, help="default: docs/models.md, if all are asked for")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--modes", action="store_true", help="print what came of every setting")
    parser.add_argument(
        "--held", nargs="*", default=None, choices=list(HELD), help="other weights to try (default: all that can be)"
    )
    parser.add_argument(
        "--held-every", type=int, default=1, metavar="N", help="hold every N-th class otherwise, not all"
    )
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines; classes in the file are not tried again")
    parser.add_argument("--seconds", type=int, default=180, help="CPU time of one architecture")
    parser.add_argument("--gigabytes", type=float, default=16.0, help="address space of one architecture")
    args = parser.parse_args(words)
    preload()
    known = args.rows.read_text().splitlines() if args.rows and args.rows.exists() else []
    rows = [Row(**json.loads(line)) for line in known]
    done = {(row.kind, row.model) for row in rows}
    todo = [case for case in select_cases(args.part, args.only) if (case.kind, case.model) not in done]
    names = args.held if args.held is not None else [name for name in HELD if can_hold(name)]
    chosen = set(cases()[:: args.held_every])
    for count, row in enumerate(
        run_cases(todo, args.jobs, args.seconds, args.gigabytes, lambda case: names if case in chosen else ()), 1
    ):
        rows.append(row)
        if args.rows:
            with args.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        print(f"{count}/{len(todo)} {row.kind} {row.model}: {row.result} {row.error:.1e} {row.note}", flush=True)
        for mode, (result, error, note) in [*row.modes.items(), *row.held.items()]:
            if args.modes or result in FAULTS:
                print(f"    {mode}: {result} {error:.1e} {note}")
    rows.sort(key=lambda row: (row.kind, row.model.lower()))
    complete = len(rows) == len(cases())
    out = args.out or (Path(__file__).parents[1] / "docs" / "models.md" if complete else None)
    if out:
        out.write_text(page(rows))
    counts = Counter(row.result for row in rows)
    print(", ".join(f"{result} {counts[result]}" for result in RESULTS))
    print(share(rows))
    counts.update(result for row in rows for result, _, _ in row.held.values())
    return int(any(counts[fault] for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
