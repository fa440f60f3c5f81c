"""Channel models by name: small-scale fading as a function of seed, round and coherence blocks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from airpfed.air.channels import fading, file, three_gpp
from airpfed.air.network import ChannelSite, Network
from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict


@dataclass(frozen=True)
class Channel:
    """A channel model.

    draw: (site, t, blocks, *, options) -> channels (B, M, K) of the coherence blocks `blocks`, a range, in round t;
    complex128, E|h|^2 = the site's mean gain. It takes its randomness from `site.rng(..., t, block)`, so that a block's
    channel depends on no other block. prepare: (site, *, options) -> network, in place of `draw`, for a model that
    computes something once for the drop, or has mean gains of its own. has_path_loss: whether it has its own path loss,
    shadowing and heights. standard: the standard that limits its frequencies and distances; empty for none. recorded:
    whether channels come from a file, whatever the positions and the seed, and end with its last round and block.
    recorded_blocks: (bandwidth_hz, subcarriers, *, options) -> (groups of subcarriers, uses of a block) of recorded
    channels, None for what the file does not say.

    >>> import torch, airpfed as ap
    >>> def two_paths(site, t, blocks, *, second_db: float = -10.0):
    ...     gain, power = site.antenna_gain, 10 ** (second_db / 10)
    ...     turns = [torch.rand(2, *gain.shape, dtype=torch.float64, generator=site.rng("paths", t, b)) for b in blocks]
    ...     first, second = torch.polar(torch.ones(()).double(), 2 * torch.pi * torch.stack(turns, 1))
    ...     return (gain / (1 + power)).sqrt() * (first + power**0.5 * second)
    >>> ap.single_cell(devices=[2, 2], antennas=4, channel=two_paths).channels(t=1, blocks=3).shape
    torch.Size([3, 4, 4])
    """

    draw: Callable[..., Tensor] | None = None
    prepare: Callable[..., Network] | None = None
    has_path_loss: bool = False
    standard: str = ""
    recorded: bool = False
    recorded_blocks: Callable[..., tuple[int | None, int | None]] | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """The function with the options."""
        function = self.prepare or self.draw
        if function is None:
            raise UserError("a channel should have a function draw or prepare")
        return function


def build_channel(name: str, row: Channel, function: Callable[..., Any], site: ChannelSite) -> Network:
    """Build the network of a site with a channel model.

    name: for messages. function: the row's function with its options. The network raises UserError if the model draws
    what is no channel.
    """
    if row.prepare is not None:
        network: Network = function(site)
        return network
    return site.network(partial(channels_of_row, name, function, site))


def channels_of_row(
    name: str, draw: Callable[..., Tensor], site: ChannelSite, seed: int, t: int, blocks: range
) -> tuple[Tensor, Tensor]:
    """A `ChannelModel` of a row with a function `draw`: no part is known without estimation."""
    h = draw(replace(site, seed=seed), t, blocks)
    shape = (len(blocks), site.antennas * len(site.gain), site.gain.shape[1])
    if not isinstance(h, Tensor) or tuple(h.shape) != shape or not h.is_complex() or not bool(h.isfinite().all()):
        faulty = isinstance(h, Tensor) and h.is_complex() and tuple(h.shape) == shape
        drawn = f"{str(h.dtype).removeprefix('torch.')} {tuple(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
        raise UserError(
            f'radio.channel = "{name}": should draw finite complex channels of shape {shape}, not '
            f"{'infinities or NaN' if faulty else drawn}"
        )
    h = h.to(torch.complex128)
    return h, torch.zeros((), dtype=h.dtype).expand(h.shape)


STANDARD = "TR 38.901"
CHANNELS: RowDict[Channel] = RowDict(
    "channel",
    {
        "rayleigh": Channel(prepare=fading.rayleigh_fading),
        "rician": Channel(prepare=fading.rician_fading),
        **{
            name: Channel(prepare=partial(three_gpp.system_level_network, name), has_path_loss=True, standard=STANDARD)
            for name in three_gpp.SCENARIOS
        },
        **{
            name: Channel(prepare=partial(three_gpp.link_level_network, name), standard=STANDARD)
            for name in three_gpp.PROFILES
        },
        "file": Channel(
            prepare=file.file_channels, has_path_loss=True, recorded=True, recorded_blocks=file.blocks_of_file
        ),
    },
    wrap=Channel,
    function=lambda row: row.function,
)
"""The channel models that `radio.channel` knows."""
