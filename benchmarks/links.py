"""Uplinks by a short name: a design, `error_free`, or `digital:BITS`."""

from typing import Any

from airpfed.air.schedule import Uplink
from airpfed.config.schema import RadioSettings, Settings
from airpfed.devices.clients import Clients
from airpfed.experiment import build


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
