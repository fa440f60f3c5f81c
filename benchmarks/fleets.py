"""Experiments to measure: the package's own objects from settings, on random tokens or on the tasks of a file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.rng import stream
from airpfed.experiment import build
from airpfed.model import compatibility, origin
from airpfed.model.tokens import Encoding
from airpfed.tasks.sample import Task
from airpfed.training.setup import TrainingSetup

CLASSES = 4
MODULES = {"minilm": ("query", "value"), "smollm2-135m": ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")}
SAMPLES = 2
"""Batches that a device of random tokens holds, so that rounds differ."""


def random_tokens(
    base: str, devices: int, batch: int, tokens: int, sections: Mapping[str, Mapping[str, Any]]
) -> tuple[Settings, TrainingSetup]:
    """An experiment whose samples are random tokens, all of the same length: nothing to save by cutting padding.

    Devices are dealt to four tasks (as many as there are, if fewer) of CLASSES classes; a causal LM should predict one
    random token, a classifier a class. sections: settings over those that base, batch and tokens ask for.
    """
    counts = [part for part in ((devices + n) // 4 for n in range(4)) if part]
    made: dict[str, dict[str, Any]] = {
        "model": {"base": base, "max_tokens": max(tokens, 4)},
        "adapters": {"target_modules": MODULES.get(base, ("q_proj", "v_proj"))},
        "devices": {"batch_size": batch},
        "radio": {"coherence_symbols": 20_000, "pilots": "perfect"},  # 10,000 devices' pilots fit into no derived block
    }
    for name, section in sections.items():
        made[name] = made.get(name, {}) | dict(section)
    tasks = [
        {"name": f"task{n}", "devices": count, "dev_samples": 0, "test_samples": 1} for n, count in enumerate(counts)
    ]
    settings = Settings.model_validate({**made, "tasks": tasks})
    config = origin.read_config(origin.origin_of(base), base)
    causal = compatibility.is_causal(config, "auto", base)
    labels = () if causal else tuple(f"class{n}" for n in range(CLASSES))
    empty = tuple(
        Task(one.name, "generate" if causal else "classify", labels, (), (), (), "") for one in settings.tasks
    )
    ready = build.build_preparation(settings, empty)
    vocabulary = ready.base.model.get_input_embeddings().num_embeddings

    def sample(device: int, number: int) -> Encoding:
        *ids, target = torch.randint(
            0, vocabulary, (tokens + 1,), generator=stream(0, "bench", device, number)
        ).tolist()
        return Encoding(tuple(ids), (target if causal else target % CLASSES,))

    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    shards = tuple(
        tuple(tuple(sample(k, i) for i in range(SAMPLES * batch)) for k in range(end - count, end))
        for count, end in zip(counts, ends, strict=True)
    )
    return settings, build.build_experiment(settings, empty, replace(ready, shards=shards))


def from_file(file: Path, overrides: list[str]) -> tuple[Settings, TrainingSetup]:
    """The experiment of a settings file, as `airpfed run` builds it."""
    settings = settings_file.read_settings(file, overrides)
    return settings, build.build_experiment(settings, build.load_tasks(settings))
