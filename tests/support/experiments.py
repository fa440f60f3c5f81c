"""Experiments from settings: base model, adapted layers and tokens are loaded once in a process and shared.

Everything else is new in every experiment. Nobody may write to what is shared: a base whose weights were written to is
loaded again for the next experiment.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.memory import keep_freed_memory
from airpfed.devices.clients import Clients
from airpfed.experiment import build
from airpfed.experiment.build import Preparation
from airpfed.experiment.build import experiment as build_module
from airpfed.experiment.build.model import metric_code
from airpfed.model.layout import Vectors
from airpfed.tasks.sample import Task
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors

MOST = 40
"""Bases that are kept, the last used."""

TASK_KEYS = {"prompt", "max_new_tokens", "kind", "metric", "further_metrics", "label_score", "label_normalised"}
TASK_KEYS |= {"template", "replies"}
"""Keys of a task that its tokens and its view depend on, besides its samples."""

load = build.build_preparation
"""What loads a base and tokenises its tasks."""

_shared: OrderedDict[str, tuple[Preparation, list[tuple[int, int, bool]]]] = OrderedDict()


def experiment(file: Path, *overrides: str, tasks: int | None = None) -> TrainingSetup:
    """The experiment of a settings file; tasks: how many of its tasks, from the first (all by default)."""
    settings = settings_file.read_settings(file, overrides)
    return experiment_of(settings.model_copy(update={"tasks": settings.tasks[:tasks]}))


def experiment_of(settings: Settings, tasks: tuple[Task, ...] | None = None) -> TrainingSetup:
    """The experiment of settings; tasks: in place of those that the settings name."""
    tasks = build.load_tasks(settings) if tasks is None else tasks
    return build.build_experiment(settings, tasks, preparation(settings, tasks))


def preparation(settings: Settings, tasks: tuple[Task, ...]) -> Preparation:
    """`build.build_preparation`, of which the process keeps everything but the cache of hidden states."""
    key = _key(settings, tasks)
    if key in _shared and _shared[key][1] != _state(_shared[key][0]):
        del _shared[key]
    if key not in _shared:
        made = load(settings, tasks)
        _shared[key] = made, _state(made)
        if len(_shared) > MOST:
            _shared.popitem(last=False)
    _shared.move_to_end(key)
    keep_freed_memory()
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    made = _shared[key][0]
    cache = type(made.cache)(made.base, settings.devices.cache_gb, settings.devices.cache_precision)
    return replace(made, tasks=tasks, cache=cache)


@contextmanager
def shared_bases() -> Iterator[None]:
    """Commands in this process share bases as well."""
    with (
        mock.patch.object(build, "build_preparation", preparation),
        mock.patch.object(build_module, "build_preparation", preparation),
    ):
        yield


def _key(settings: Settings, tasks: Sequence[Task]) -> str:
    """Everything that `build.build_preparation` depends on, by content: settings, tasks, the base's files."""
    base, adapters = Path(settings.model.base), settings.adapters
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(base.glob("*"))]
    parts = settings.model_dump(
        mode="json",
        include={
            "model": True,
            "tasks": {"__all__": TASK_KEYS},
            "adapters": {"target_modules", "layers", "alpha", "rslora", "dropout"},
            "run": {"seed", "device"},
        },
    )
    ranks = adapters.rank_shared + adapters.rank_personal, adapters.method.row.averages
    return repr((files, parts, ranks, tasks, metric_code(settings)))


def _state(made: Preparation) -> list[tuple[int, int, bool]]:
    """What changes where somebody writes to the base's weights."""
    tensors = [*made.base.model.parameters(), *made.base.model.buffers()]
    return [(tensor.data_ptr(), tensor._version, tensor.requires_grad) for tensor in tensors]


def computed(clients: Clients, **changes: bool) -> Clients:
    """A fleet that computes in other ways than were measured to be the fastest."""
    backbone = clients.backbone.with_paths(replace(clients.backbone.paths, **changes))
    cache = clients.cache.fresh()
    cache.use_paths(backbone.paths)
    return replace(clients, backbone=backbone, cache=cache)


def random_vectors(made: TrainingSetup, seed: int = 0) -> Vectors:
    """No factor is zero: at B = 0 the gradient of A vanishes and would hide faults."""
    rng = torch.Generator().manual_seed(seed)
    return {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}


def in_double(clients: Clients) -> None:
    """The model in float64 throughout: Llama's own RMSNorm computes in float32, torch's in the type it is given."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    model = clients.backbone.model.double()
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
