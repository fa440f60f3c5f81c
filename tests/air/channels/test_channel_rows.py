"""A channel model of the user's own: a function that draws, held to what a channel is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from airpfed.air.channels import CHANNELS, Channel, build_channel
from airpfed.air.network import ChannelSite, Network, estimate_channels
from airpfed.core.errors import UserError
from support.commands import command, good
from support.plugins import without_rows
from support.settings import save_settings

SITE = ChannelSite(
    stations=torch.zeros(2, 2, dtype=torch.float64),
    devices=torch.ones(3, 2, dtype=torch.float64),
    gain=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64) * 1e-9,
    antennas=4,
    seed=7,
    carrier_hz=3.5e9,
    bandwidth_hz=20e6,
    subcarriers=64,
    subcarrier_groups=1,
    coherence_s=1e-3,
)
SHAPE = (8, 3)


def gaussian(site: ChannelSite, t: int, blocks: range, *, scale: float = 1.0) -> Tensor:
    """Independent Gaussian channels."""
    gain = site.gain.repeat_interleave(site.antennas, 0)
    draws = [torch.randn(gain.shape, dtype=torch.complex128, generator=site.rng("own", t, block)) for block in blocks]
    return scale * torch.stack(draws) * gain.sqrt()


def network_of(draw: Callable[..., object], **options: object) -> Network:
    return build_channel("own", Channel(draw), lambda *args: draw(*args, **options), SITE)  # type: ignore[arg-type]


def test_a_draw_function_is_a_network():
    h, known = network_of(gaussian, scale=2.0).channel_model(7, 3, range(5))
    assert h.shape == (5, *SHAPE) and h.dtype == torch.complex128 and not known.any()
    assert torch.equal(h, 2.0 * gaussian(SITE, 3, range(5)))
    single = network_of(lambda site, t, blocks: gaussian(site, t, blocks).to(torch.complex64))
    assert single.channel_model(7, 3, range(2))[0].dtype == torch.complex128


def test_a_blocks_channel_depends_on_no_other_block_and_on_seed_and_round():
    model = network_of(gaussian).channel_model
    together = model(7, 3, range(6))[0]
    assert torch.equal(model(7, 3, range(4, 6))[0], together[4:])
    assert torch.equal(torch.cat([model(7, 3, range(b, b + 1))[0] for b in range(6)]), together)
    assert not torch.equal(model(8, 3, range(6))[0], together) and not torch.equal(model(7, 4, range(6))[0], together)


def test_channel_estimates_of_a_drawn_channel_have_their_error():
    h_est, h = estimate_channels(network_of(gaussian), 0.25, 7, 1, range(2000))
    share = (h_est - h).abs().square().mean(0) / SITE.gain.repeat_interleave(4, 0)
    assert ((share - 0.25) / (0.25 / 2000**0.5)).abs().max() < 5


WRONG: dict[str, tuple[Callable[..., object], str]] = {
    "shape": (lambda site, t, blocks: gaussian(site, t, blocks)[:, :4], r"not complex128 (2, 4, 3)"),
    "one block": (lambda site, t, blocks: gaussian(site, t, blocks)[0], r"not complex128 (8, 3)"),
    "real": (lambda site, t, blocks: gaussian(site, t, blocks).real, "not float64 (2, 8, 3)"),
    "NaN": (lambda site, t, blocks: gaussian(site, t, blocks) * torch.nan, "not infinities or NaN"),
    "infinity": (lambda site, t, blocks: gaussian(site, t, blocks) / 0, "not infinities or NaN"),
    "numpy": (lambda site, t, blocks: gaussian(site, t, blocks).numpy(), "not ndarray"),
    "nothing": (lambda site, t, blocks: None, "not NoneType"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_channel_is_one_line(fault):
    draw, words = WRONG[fault]
    with pytest.raises(UserError) as caught:
        network_of(draw).channel_model(7, 0, range(2))
    assert (
        str(caught.value) == f'radio.channel = "own": should draw finite complex channels of shape (2, 8, 3), {words}'
    )


def test_a_row_needs_a_function():
    with pytest.raises(UserError, match="a channel should have a function draw or prepare"):
        CHANNELS["own"] = Channel()
    assert "own" not in CHANNELS


# In commands


@pytest.fixture
def file(tmp_path: Path, shared_bases: None) -> Iterator[Path]:
    with without_rows():
        yield save_settings(tmp_path, False)
    CHANNELS.data.pop("own", None)


def test_run_and_link_draw_from_it(file, tmp_path):
    drawn: list[tuple[int, int]] = []

    def own(site: ChannelSite, t: int, blocks: range, *, scale: float = 1.0) -> Tensor:
        drawn.extend((t, block) for block in blocks)
        return gaussian(site, t, blocks, scale=scale)

    CHANNELS["own"] = own
    good(command("run", file, "--set", "radio.channel=own(scale=0.5)", "--out", tmp_path / "run"))
    assert {t for t, _ in drawn} >= {1, 2, 3}
    words = ["link", file, "--draws", "2", "--design", "mmse", "--json", "--set"]
    levels = [
        json.loads(good(command(*words, f"radio.channel={channel}")).out)["mmse"]["pi_db"]
        for channel in ("own", "own(scale=0.1)", "rayleigh")
    ]
    assert levels[1] > levels[0] + 10 and levels[2] != levels[0]


@pytest.mark.parametrize("order", ["run", "link"])
@pytest.mark.parametrize("fault", ["shape", "real", "NaN", "nothing"])
def test_a_command_says_in_one_line_that_it_is_no_channel(order, fault, file, tmp_path):
    CHANNELS["own"] = WRONG[fault][0]
    more = ["--out", tmp_path / "run"] if order == "run" else ["--draws", "1"]
    done = command(order, file, "--set", "radio.channel=own", *more)
    assert done.code == 2 and not done.traceback and done.err.count("\n") == 1, done
    assert 'radio.channel = "own": should draw finite complex channels of shape' in done.err
