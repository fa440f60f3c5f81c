"""Plug-ins of at most 15 lines each, as somebody outside the package writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airpfed.config import plugins
from airpfed.config.choice import KINDS

DESIGN = '''
"""My receiver."""
from typing import Annotated
from pydantic import Field
import airpfed as ap

def mine(problem, *, truncation: Annotated[float, Field(ge=0, le=1, description="threshold")] = 0.2):
    """Channel inversion with a fixed threshold."""
    return ap.designs.channel_inversion(problem, truncation=truncation)

ap.DESIGNS["mine"] = mine
'''
CHANNEL = '''
import airpfed as ap
import torch

def two_rays(site, t, blocks, *, weak_db: float = 10.0):
    """Two rays, the second weaker."""
    gain, a = site.gain.repeat_interleave(site.antennas, 0), 10 ** (-weak_db / 20)
    def ray(name, block):
        return torch.randn(gain.shape, dtype=torch.complex128, generator=site.rng(name, t, block))
    rays = [ray("first ray", block) + a * ray("second ray", block) for block in blocks]
    return torch.stack(rays) * (gain / (1 + a * a)).sqrt()

ap.CHANNELS["two_rays"] = two_rays
'''
METHOD = '''
import airpfed as ap
from airpfed.model.methods import Block

def half(rank_shared, rank_personal, *, share: float = 0.5):
    """A share of the ranks for all devices, the remainder for each task."""
    first = round(share * (rank_shared + rank_personal))
    return Block(first, "global", "global"), Block(rank_shared + rank_personal - first, "task", "task")

ap.METHODS["half"] = half
'''
AGGREGATOR = '''
import airpfed as ap

def clipped_mean(t, updates, *, norm: float = 1.0):
    """The weighted mean of the gradients, each cut to a norm."""
    def combine(gradients, samples):
        scale = (norm / gradients.norm(dim=1).clamp(min=1e-12)).clamp(max=1)
        return (samples.to(gradients.dtype) * scale) @ gradients / samples.sum()
    return updates.by_task(combine)

ap.AGGREGATORS["clipped_mean"] = clipped_mean
'''
METRIC = '''
import airpfed as ap

def recall(predicted, correct, *, of: int = 0):
    """Share of the samples of one class that are answered right."""
    answers = [p == c for p, c in zip(predicted, correct, strict=True) if c == of]
    return sum(answers) / len(answers) if answers else 0.0

ap.METRICS["recall"] = recall
'''
OPTIMIZER = '''
import airpfed as ap

def sign(lr, *, decay: float = 0.0):
    """Sign descent with weight decay."""
    def init(value):
        return {}
    def update(gradient, state, value, count):
        return value * (1 - lr * decay) - lr * gradient.sign(), {}
    return init, update

ap.OPTIMIZERS["sign"] = sign
'''
TEXTS = {
    "design.py": DESIGN,
    "channel.py": CHANNEL,
    "method.py": METHOD,
    "aggregator.py": AGGREGATOR,
    "metric.py": METRIC,
    "optimizer.py": OPTIMIZER,
}
"""File -> its text."""
CHOICES = {
    "design.py": "radio.design=mine(truncation=0.1)",
    "channel.py": "radio.channel=two_rays(weak_db=3)",
    "method.py": "adapters.method=half(share=0.5)",
    "aggregator.py": "server.aggregator=clipped_mean(norm=0.5)",
    "metric.py": "tasks.colours.metric=recall(of=1)",
    "optimizer.py": "server.optimizer=sign(decay=0.1)",
}
"""File -> the setting that chooses its row, with an option."""


def save_plugins(folder: Path, *names: str) -> tuple[str, ...]:
    """Write plug-ins into a folder; returns the overrides that load them and choose their rows."""
    for name in names:
        (folder / name).write_text(TEXTS[name].lstrip())
    listed = ", ".join(f'"{name}"' for name in names)
    return f"plugins=[{listed}]", *(CHOICES[name] for name in names)


@contextmanager
def without_rows() -> Iterator[None]:
    """No row of a plug-in, before and after: as in processes of their own."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    plugins._loaded.clear()
    for kind in KINDS.values():
        rows = kind.rows
        for name in list(rows.origins):
            rows.origins.pop(name)
            rows.data.pop(name, None)
