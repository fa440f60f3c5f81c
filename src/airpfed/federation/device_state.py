"""A device's private state on its own disk: parameters that are never sent, and their moments, by run and round.

A device cannot know whether its answer reached the server in time, so it keeps both outcomes of its last round. The
next message says how often the server has counted the device, and this number decides between them. A repeated message
of the same round starts from the same parameters and gives the same answer, so no update is applied twice.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.federation.addresses import private_folder
from airpfed.training import checkpoint
from airpfed.training.state import OptimizedParameters, ServerStep, initial_parameters, update


@dataclass(frozen=True)
class Personal:
    """A device's parameters before its work in `round`, and after it in case the server counts the device."""

    round: int
    before: OptimizedParameters
    after: OptimizedParameters


def fresh(value: Tensor, server_step: ServerStep) -> Personal:
    """The state before the first round.

    value: initial parameters of device scope, (1, d). server_step: the optimizer of all parameters.
    """
    parameters = initial_parameters(value, server_step)
    return Personal(0, parameters, parameters)


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


def outcomes(parameters: OptimizedParameters, gradient: Tensor, t: int, server_step: ServerStep) -> Personal:
    """Both outcomes of round t.

    gradient: gradient of the parameters of device scope, (1, d), finite.
    """
    return Personal(t, parameters, update(parameters, gradient, torch.ones(1, dtype=torch.bool), server_step))


def save(folder: Path, state: Personal, seed: int, fingerprint: str) -> None:
    """Write the state atomically: after a crash the disk holds the old or the new state."""
    private_folder(folder.parent)
    after = OptimizedParameters(  # tensors of their own, as safetensors needs them
        state.after.value.clone(),
        {name: tensor.clone() for name, tensor in state.after.optimizer_state.items()},
        state.after.updates.clone(),
    )
    checkpoint.save_state(folder, replace(state, after=after), seed, fingerprint)
