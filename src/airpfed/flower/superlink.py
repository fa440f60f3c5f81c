"""Flower's SuperLink with a gate: from other machines only the interface for devices can be reached.

Flower 1.41 serves three interfaces on one port: Fleet (devices, authenticated by their keys), Control (who starts runs
and admits keys) and Runtime (the server's own processes). The last two ask for no credentials: whoever reaches them can
run code on the server and on every device. Run as `python -m airpfed.flower.superlink`, with SuperLink's options.
"""

import ipaddress
import re
import sys
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware

OPEN = re.compile(r"/v1/fleet/[a-z-]+|/health")
"""Paths that devices use."""


class Gate:
    """Answers 403 to a request from another machine that is not of the interface for devices."""

    def __init__(self, app: Any) -> None:
        """Stand before `app`."""
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Let a request through, or refuse it."""
        if (scope["type"] != "http" and scope["type"] != "websocket") or admitted(scope):
            await self.app(scope, receive, send)
            return
        print(
            f"gate: {(scope.get('client') or ['?'])[0]} may not ask for {scope['path']!r}", file=sys.stderr, flush=True
        )
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def admitted(scope: dict[str, Any]) -> bool:
    """Whether a request is for the devices' interface, or comes from this machine."""
    return bool(OPEN.fullmatch(scope["path"])) or same_machine(scope.get("client"), scope.get("server"))


def same_machine(client: Any, server: Any) -> bool:
    """Whether a connection's two ends are one machine: loopback, or the address that it connected to."""
    if not client or not server:
        return False
    try:
        far, near = ipaddress.ip_address(client[0]), ipaddress.ip_address(server[0])
    except ValueError:
        return False
    mapped = getattr(far, "ipv4_mapped", None)
    return far.is_loopback or (mapped is not None and mapped.is_loopback) or far == near


if __name__ == "__main__":
    extensions.get_middleware = lambda: (Middleware(Gate),)
    flower_superlink()
