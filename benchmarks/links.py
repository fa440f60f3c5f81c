"""Uplinks by a short name (a design, `error_free`, or `digital:BITS`), and gradients of real rounds for them."""

from collections.abc import Iterator
from typing import Any

from airpfed.air.schedule import Updates, Uplink
from airpfed.air.uplink import uplink
from airpfed.config.schema import RadioSettings, Settings
from airpfed.devices.clients import Clients
from airpfed.experiment import build
from airpfed.training.round import local_gradients, round_step
from airpfed.training.setup import TrainingSetup


def link_of(settings: Settings, clients: Clients, name: str, access: str = "orthogonal", **changes: Any) -> Uplink:
    """The uplink of clients with this link in place of the settings' own, and other changes of radio keys.

    access: of a digital link.
    """
    kind, _, bits = name.partition(":")
    if kind == "digital":
        changes["scheme"] = {"name": "digital", "bits": int(bits or 4), "access": access}
    elif kind == "error_free":
        changes["scheme"] = "error_free"
    else:
        changes |= {"scheme": "linear", "design": kind}
    tree = settings.radio.model_dump(exclude_none=True)
    radio = RadioSettings.model_validate(tree | changes)
    return build.client_uplink(settings.model_copy(update={"radio": radio}), clients)


def gradients_of_rounds(settings: Settings, experiment: TrainingSetup, rounds: int) -> Iterator[tuple[int, Updates]]:
    """The gradients of each round of a run over the error-free link."""
    exact, state = link_of(settings, experiment.clients, "error_free"), experiment.initial
    for t in range(1, rounds + 1):
        gradients, _, cursors = local_gradients(
            experiment.clients, state, experiment.local_training, experiment.devices_per_pass
        )
        state, _, present = round_step(
            state, gradients, cursors, lambda *given: uplink(exact, *given), experiment.server_step
        )
        yield t, Updates(gradients["global"], gradients["task"], present)
