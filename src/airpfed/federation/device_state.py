"""What a device keeps on its own disk: parameters that are never sent, with their moments, keyed by run and round.

A device cannot know whether its answer reached the server in time. So it keeps both outcomes of its last round, and the
next message, which says how often the server has counted this device, decides between them. A repeated message of the
same round starts from the same parameters and gives the same answer; nothing moves twice.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.federation.addresses import private
from airpfed.training import checkpoint
from airpfed.training.state import OptimizedParameters, ServerStep, update


@dataclass(frozen=True)
class Personal:
    """A device after its work in `round`: parameters before it, and as they are if the server counts it."""

    round: int
    before: OptimizedParameters
    after: OptimizedParameters


def fresh(value: Tensor) -> Personal:
    """Before the first round. value: the one row of initial parameters of device scope."""
    own = OptimizedParameters(value, torch.zeros_like(value), torch.zeros_like(value), torch.zeros(1, dtype=torch.long))
    return Personal(0, own, own)


def load(folder: Path, like: Personal, fingerprint: str) -> Personal:
    """What is on the disk, or `like` where nothing is yet; UserError if it is damaged or of other settings."""
    try:
        return checkpoint.load_state(folder, like, fingerprint) if checkpoint.exists(folder) else like
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: damaged ({type(error).__name__}); restore the device's state folder") from None


def begun(kept: Personal, t: int, counted: int) -> OptimizedParameters:
    """Parameters that round t starts from. counted: rounds that the server has counted this device in.

    Raises UserError for a round that is over, and where neither outcome of the last round fits the count.
    """
    if t < kept.round:
        raise UserError(f"round {t} is over here: the last one was {kept.round}")
    if t == kept.round:
        return kept.before
    if not kept.after.value.shape[1]:  # nothing of device scope: nothing can be lost
        return replace(kept.after, updates=torch.tensor([counted]))
    for own in (kept.after, kept.before):
        if int(own.updates) == counted:
            return own
    raise UserError(
        f"the device's own parameters are not those of this run: moved {int(kept.after.updates)} times, "
        f"the server counted {counted}; restore the device's state folder"
    )


def moved(own: OptimizedParameters, gradient: Tensor, t: int, server_step: ServerStep) -> Personal:
    """Both outcomes of round t. gradient: (1, d) of the parameters of device scope, finite."""
    return Personal(t, own, update(own, gradient, torch.ones(1, dtype=torch.bool), server_step))


def save(folder: Path, kept: Personal, seed: int, fingerprint: str) -> None:
    """Put it safely on the disk; a crash leaves the old or the new."""
    private(folder.parent)
    after = OptimizedParameters(
        *(getattr(kept.after, item.name).clone() for item in fields(OptimizedParameters))
    )  # of its own on the disk
    checkpoint.save_state(folder, replace(kept, after=after), seed, fingerprint)
