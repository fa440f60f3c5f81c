"""A device's private state on its own disk: parameters that are never sent, and their moments, by run and round.

With an error memory it also keeps the vectors that it sent last, and what it had not sent before.

A device cannot know whether its answer reached the server in time, so it keeps both outcomes of its last round. The
next message says how often the server has counted the device, and this number decides between them. A repeated message
of the same round starts from the same parameters and gives the same answer, so no update is applied twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.federation.addresses import private_folder
from airpfed.training import checkpoint
from airpfed.training.state import ErrorMemory, OptimizedParameters, ServerStep, initial_parameters, update


@dataclass(frozen=True)
class Personal:
    """A device's parameters before its work in `round`, and after it in case the server counts the device.

    memory: scope -> (1, d), what the device had not sent before `round`. transmitted: what it sent in `round`, with the
    memory. Both are empty without an error memory.
    """

    round: int
    before: OptimizedParameters
    after: OptimizedParameters
    memory: ErrorMemory = field(default_factory=dict)
    transmitted: ErrorMemory = field(default_factory=dict)


def fresh(value: Tensor, server_step: ServerStep, memory: ErrorMemory | None = None) -> Personal:
    """The state before the first round.

    value: initial parameters of device scope, (1, d). server_step: the optimizer of all parameters. memory: zeros,
    None without an error memory.
    """
    parameters = initial_parameters(value, server_step)
    return Personal(0, parameters, parameters, memory or {}, memory or {})


def load(folder: Path, template: Personal, fingerprint: str) -> Personal:
    """The state on disk, or `template` if there is none. Raises UserError if it is damaged or belongs to other
    settings.
    """
    try:
        return checkpoint.load_state(folder, template, fingerprint) if checkpoint.exists(folder) else template
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: damaged ({type(error).__name__}); restore the device's state folder") from None


def start_of_round(state: Personal, t: int, counted: int) -> OptimizedParameters:
    """The parameters at the start of round t.

    counted: number of rounds in which the server has counted this device. Raises UserError if a later round has started
    here, or if neither stored outcome has this count.
    """
    if t < state.round:
        raise UserError(f"round {t} is over here: the last one was {state.round}")
    if t == state.round:
        return state.before
    if not state.after.value.shape[1]:  # no parameters of device scope, so none can be lost
        return replace(state.after, updates=torch.tensor([counted]))
    for parameters in (state.after, state.before):
        if int(parameters.updates) == counted:
            return parameters
    raise UserError(
        f"the device's own parameters are not those of this run: moved {int(state.after.updates)} times, "
        f"the server counted {counted}; restore the device's state folder"
    )


def memory_at_start(state: Personal, t: int, counted: int, unsent: Callable[[ErrorMemory], ErrorMemory]) -> ErrorMemory:
    """What the device has not sent yet at the start of round t; empty without an error memory.

    counted: as in `start_of_round`. unsent: transmitted vectors -> what the scheme left out of them. A device that was
    not counted in its last round has all that it sent then still to send. Raises UserError if the state is not that of
    this run.
    """
    if t == state.round or not state.memory:
        return state.memory
    if counted == int(state.after.updates) and state.round:
        return unsent(state.transmitted)
    if counted == int(state.before.updates):
        return state.transmitted
    raise UserError(
        f"the device's error memory is not that of this run: sent {int(state.after.updates)} times, the server counted "
        f"{counted}; restore the device's state folder"
    )


def outcomes(
    parameters: OptimizedParameters,
    gradient: Tensor,
    t: int,
    server_step: ServerStep,
    memory: ErrorMemory | None = None,
    transmitted: ErrorMemory | None = None,
) -> Personal:
    """Both outcomes of round t.

    gradient: gradient of the parameters of device scope, (1, d), finite. memory, transmitted: as in `Personal`.
    """
    after = update(parameters, gradient, torch.ones(1, dtype=torch.bool), server_step)
    return Personal(t, parameters, after, memory or {}, transmitted or {})


def save(folder: Path, state: Personal, seed: int, fingerprint: str) -> None:
    """Write the state atomically: after a crash the disk holds the old or the new state."""
    private_folder(folder.parent)
    after = OptimizedParameters(  # tensors of their own, as safetensors needs them
        state.after.value.clone(),
        {name: tensor.clone() for name, tensor in state.after.optimizer_state.items()},
        state.after.updates.clone(),
    )
    transmitted = {scope: vector.clone() for scope, vector in state.transmitted.items()}
    checkpoint.save_state(folder, replace(state, after=after, transmitted=transmitted), seed, fingerprint)
