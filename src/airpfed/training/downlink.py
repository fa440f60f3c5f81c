"""A rounded downlink with error feedback: what the devices hold follows the servers' parameters, with few bits.

After round t the servers hold W_t and every device of a scope holds the same copy V_{t-1}. They broadcast

    q_t = round(W_t - V_{t-1}),    V_t = V_{t-1} + q_t,

to the nearest of 2^bits levels with a scale per 512 entries (`air.quantization.round_to_nearest`). The error
e_t = W_t - V_t stays at the servers and is a part of the next broadcast: with the step x_t = W_t - W_{t-1} this is
e_t = (x_t + e_{t-1}) - round(x_t + e_{t-1}), error feedback (Seide et al., 2014; Stich et al., 2018). Every entry of
e_t is at most q / (1 - q) times the largest entry of any step so far, q = `quantization.contraction(bits)`; rounding
x_t alone would add the errors of all rounds up. The devices compute with V_t, and V_t is what is scored and exported.
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from airpfed.air.quantization import round_to_nearest
from airpfed.model.layout import Layout
from airpfed.training.state import DeviceCopies, State


def with_copies(state: State) -> State:
    """The state before round 1 of a run with a rounded downlink: the devices hold the servers' first parameters."""
    server = state.server
    return replace(
        state, server=replace(server, copies=DeviceCopies(server.shared.value.clone(), server.personal.value.clone()))
    )


def broadcast(state: State, layout: Layout, bits: int) -> State:
    """The state after the broadcast that ends round `state.round`: the columns that the round trained, rounded.

    s goes to all devices and each task's p to its own, without the columns beyond its length. With alternating factors
    only the active columns are sent; the other columns keep their copies, and their errors wait for their turn.
    """
    server, copies = state.server, state.server.copies
    assert copies is not None, "a state of `with_copies`"
    shared, personal = copies.shared.clone(), copies.personal.clone()
    columns = slice(*layout.active_columns(state.round))
    send(shared[:, columns], server.shared.value[:, columns], bits)
    for n, length in enumerate(layout.task_lengths):
        send(personal[n : n + 1, :length], server.personal.value[n : n + 1, :length], bits)
    return replace(state, server=replace(server, copies=DeviceCopies(shared, personal)))


def send(copy: Float[Tensor, "1 d"], value: Float[Tensor, "1 d"], bits: int) -> None:
    """Add the rounded difference between the servers' values and the devices' copy to the copy, in place."""
    if copy.numel():
        copy += round_to_nearest(value - copy, bits)
