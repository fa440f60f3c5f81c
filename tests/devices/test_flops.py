"""The operations of a step, counted in closed form, against torch's own count of the products that it makes."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from airpfed.config import settings_file
from airpfed.devices.clients import Clients
from airpfed.devices.flops import count_sample_flops
from airpfed.devices.gradients import loss_gradient
from airpfed.devices.prefix_cache import PrefixCache
from airpfed.model import layers
from airpfed.model.layout import gather
from airpfed.model.tokens import Encoding
from support.experiments import experiment_of

CASES = {
    "every layer": ("llama", ()),
    "a cached prefix": ("llama", ("adapters.layers=last-4",)),
    "the last layer alone": ("llama", ("adapters.layers=last-1",)),
    "adapters behind the attention": ("llama", ("adapters.layers=last-2", 'adapters.target_modules=["down_proj"]')),
    "the output of the attention": (
        "llama",
        ("adapters.layers=last-2", 'adapters.target_modules=["o_proj","up_proj"]'),
    ),
    "an encoder": ("bert", ("adapters.layers=last-4",)),
    "a large rank": ("llama", ("adapters.rank_shared=12", "adapters.layers=last-3")),
}


def clients_of(kind: str, overrides: tuple[str, ...], last_layer: bool, request: pytest.FixtureRequest) -> Clients:
    """The clients of a tiny model, whose products are all made by operations that torch counts."""
    file = request.getfixturevalue(f"{kind}_settings")
    clients = experiment_of(settings_file.read_settings(file, overrides)).clients
    paths = replace(clients.backbone.paths, fused=False, packing=False, last_layer=last_layer, prefix=True)
    backbone = clients.backbone.with_paths(paths)
    backbone.model.set_attn_implementation("eager")
    return replace(clients, backbone=backbone, cache=PrefixCache(backbone))


def counted(clients: Clients, sample: Encoding, first: bool) -> int:
    """The operations that torch counts in the step of one device on one sample."""
    clients = replace(clients, shards=((sample,), *clients.shards[1:]), cache=clients.cache.fresh())
    zero, counter = torch.zeros(1, dtype=torch.long), FlopCounterMode(display=False)
    start = {scope: rows[:1] for scope, rows in vectors_of(clients).items()}
    factors = gather(start, clients.layout, zero, zero)
    if not first:
        clients.cache.fill("device 0", clients.shards[0], [0])
    with counter:
        loss_gradient(clients, factors, [0], [[0]])
    return int(counter.get_total_flops())


def vectors_of(clients: Clients) -> dict:
    from airpfed.core.rng import stream
    from airpfed.model.layout import initial_vectors

    return initial_vectors(clients.layout, clients.backbone.heads, stream(0, "adapters"))


def sample_of(kind: str, tokens: int, read: int) -> Encoding:
    return Encoding(tuple(range(5, 5 + tokens)), tuple(range(read)) if kind == "llama" else (0,))


@pytest.mark.usefixtures("shared_bases")
@pytest.mark.parametrize(
    ("case", "last_layer"),
    [*((case, False) for case in CASES), *((case, True) for case in ("a cached prefix", "an encoder", "a large rank"))],
)
def test_the_count_is_that_of_torch(
    case: str, last_layer: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "ROW_MULTIPLE", 1)  # rows of zeros that make the output layer exact are no work
    kind, overrides = CASES[case]
    clients = clients_of(kind, overrides, last_layer, request)
    count = count_sample_flops(clients)
    for tokens, read, first in ((9, 1, False), (9, 1, True), (24, 4, False), (40, 1, False)):
        sample = sample_of(kind, tokens, read)
        exact = counted(clients, sample, first)
        assert count.total(tokens, len(sample.targets), first) == pytest.approx(exact, rel=1e-6), (tokens, read, first)
