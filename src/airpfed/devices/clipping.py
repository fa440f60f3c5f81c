"""Clipping of a device's gradient to a norm, before anything is sent."""

import torch
from jaxtyping import Bool
from torch import Tensor

from airpfed.core import memory
from airpfed.model.layout import Vectors


def clip_gradients(
    gradients: Vectors, max_norm: float, active_columns: tuple[int, int] | None = None
) -> Bool[Tensor, " K"]:
    """Scale the gradient of each device down to the L2 norm `max_norm`, in place; return which ones were longer.

    gradients: scope -> (K, d_scope). The norm is that of torch.nn.utils.clip_grad_norm_: over all that the device
    trains, which is every scope but `frozen`, and of the scope `global` only the active columns [first, last). A
    gradient whose norm is not finite stays as it is, because its device is absent from the round.
    """
    trained = {scope: rows for scope, rows in gradients.items() if scope != "frozen"}
    long = torch.zeros(len(next(iter(gradients.values()))), dtype=torch.bool)
    for device in range(len(long)):  # one row at a time: a federation's device gets the same bits
        parts = [
            rows[device, slice(*active_columns)] if scope == "global" and active_columns else rows[device]
            for scope, rows in trained.items()
        ]
        norm = sum(float(part.double().square().sum()) for part in parts) ** 0.5
        if max_norm < norm < float("inf"):
            long[device] = True
            for rows in trained.values():
                rows[device] *= max_norm / norm
    for rows in trained.values():
        memory.release_pages(rows)
    return long
