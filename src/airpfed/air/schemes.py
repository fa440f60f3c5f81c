"""Schemes by name: how a slot's gradients become sums at the servers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from airpfed.air.designs import Unbiased
from airpfed.air.digital import send_quantised, unsent_entries
from airpfed.air.round_cost import digital_ledger
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import SlotPlan, Uplink
from airpfed.air.slot_errors import ERRORS, ReceivedSums, SlotErrors
from airpfed.core.rows import RowDict

Mixing = Literal["full", "permutation", "none"]
"""Which mixing of the entries before sending a scheme bears: rotations, permutations only, or none."""
Knowledge = Literal["instant", "slow", "none"]
"""The channel knowledge of a scheme: estimates of every block, mean gains, or neither."""


@dataclass(frozen=True)
class Scheme:
    """A scheme of the uplink.

    send: (link, slot, t, *, options) -> the sums of a slot. unbiased: what it claims of the mean of the received sum,
    for devices without impairments; a scheme that superposes leaves this to its design. cost: (link, slots, t, d_s, *,
    the same options) -> the ledger of a round; None charges the slots as symbols over the air. superposes: whether a
    design (`radio.design`) superposes the gradients in the channel; then `send` is not called. mixing: which mixing of
    the entries before sending the scheme bears. knowledge: the channel knowledge that `send` may use. unsent: (vectors
    (k, d), lengths (k), *, the same options) -> what `send` leaves out of each device's vector, (k, d), a function of
    the vector alone, so that the device can keep it (`devices.memory`). biased_options: option -> values with which the
    scheme claims no mean, whatever `unbiased` says.

    >>> import airpfed as ap
    >>> [name for name, scheme in ap.SCHEMES.items() if scheme.unbiased == "given the channel"]
    ['digital', 'error_free']
    """

    send: Callable[..., ReceivedSums]
    unbiased: Unbiased = "no"
    cost: Callable[..., Any] | None = None
    superposes: bool = False
    mixing: Mixing = "none"
    knowledge: Knowledge = "instant"
    unsent: Callable[..., Any] | None = None
    biased_options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def claimed_mean(self, options: Mapping[str, Any]) -> Unbiased:
        """What the scheme claims of the mean of the received sum with these options."""
        is_biased = any(options.get(name) in values for name, values in self.biased_options.items())
        return "no" if is_biased else self.unbiased

    def leaves_unsent(self, options: Mapping[str, Any]) -> bool:
        """Whether devices can know of entries that were not sent, so that an error memory has something to keep."""
        if self.superposes:
            return True
        return self.unsent is not None and (not self.biased_options or self.claimed_mean(options) == "no")


def exact_sums(link: Uplink, slot: SlotPlan, t: int) -> ReceivedSums:
    """Exact sums, without energy; charged as symbols over the air without pilots."""
    zero = torch.zeros(len(slot.combining_matrix), dtype=torch.float64)
    weights = slot.combining_matrix @ slot.weights
    parts = (weights[:, rows] @ slot.vectors[rows] for rows in row_chunks(*slot.vectors.shape))
    sums = sum(parts, torch.zeros(len(zero), slot.vectors.shape[1], dtype=torch.float64)).to(slot.vectors.dtype)
    errors = SlotErrors(**dict.fromkeys(ERRORS, zero), scale=torch.ones_like(zero))
    return ReceivedSums(sums, errors, joules=torch.zeros(len(slot.devices), dtype=torch.float64))


def superpose_slot(link: Uplink, slot: SlotPlan, t: int) -> ReceivedSums:
    """The channel forms the sums: devices transmit at once, with the factors and receivers of `radio.design`.

    `air.uplink` sends such a slot segment by segment; this function only stands for it in the table.
    """
    raise NotImplementedError("a scheme that superposes has no function for a slot")


SCHEMES: RowDict[Scheme] = RowDict(
    "scheme",
    {
        "linear": Scheme(superpose_slot, superposes=True, mixing="full"),
        "digital": Scheme(
            send_quantised,
            "given the channel",
            digital_ledger,
            mixing="full",
            unsent=unsent_entries,
            biased_options={"quantizer": ("top_k", "sign")},
        ),
        "error_free": Scheme(exact_sums, "given the channel", mixing="full", knowledge="none"),
    },
    wrap=Scheme,
    function=lambda row: row.send,
)
"""The schemes that `radio.scheme` knows."""
