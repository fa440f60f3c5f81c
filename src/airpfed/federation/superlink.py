"""Flower's SuperLink with a gate: from other machines only the interface for devices can be reached.

Flower 1.41 serves three interfaces on one port: Fleet (devices, authenticated by their keys), Control (who starts runs
and admits keys) and Runtime (the server's own processes). The last two ask for no credentials: whoever reaches them can
run code on the server and on every device. Run as `python -m airpfed.federation.superlink`, with SuperLink's options.
"""

import ipaddress
import os
import re
import sys
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware

from airpfed.federation.message import printable

OPEN = {"POST": re.compile(r"/v1/fleet/[a-z-]+"), "GET": re.compile(r"/health")}
"""Paths that devices use, by method."""

HEADERS = re.compile(
    r"host|connection|keep-alive|user-agent|accept(-encoding|-language)?|content-(type|length|encoding)|"
    r"transfer-encoding|expect|(x-)?flwr-[a-z0-9-]+"
)
"""Headers that Flower's own programs send. What a forwarder adds, whatever its name, is none of them."""


class Gate:
    """Answers 403 to a request from another machine that is not of the interface for devices."""

    def __init__(self, app: Any) -> None:
        """Stand before `app`."""
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Let a request through, or refuse it."""
        if (scope["type"] != "http" and scope["type"] != "websocket") or is_admitted(scope):
            await self.app(scope, receive, send)
            return
        path = printable(scope["path"], 100)
        who = printable((scope.get("client") or ["?"])[0], 60)
        print(f"gate: {who} may not ask for {path!r}{forwarding_header(scope)}", file=sys.stderr, flush=True)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def is_admitted(scope: dict[str, Any]) -> bool:
    """Whether a request was not forwarded, and is for the devices' interface or from this machine."""
    if forwarding_header(scope):
        return False
    return is_device_request(scope) or same_machine(scope.get("client"), scope.get("server"))


def is_device_request(scope: dict[str, Any]) -> bool:
    """Whether a request is for the devices' interface, its path written without any encoding."""
    right = OPEN.get(scope.get("method", ""))
    plain = scope.get("raw_path") in (None, scope["path"].encode()) and not scope.get("root_path")
    return scope["type"] == "http" and right is not None and plain and bool(right.fullmatch(scope["path"]))


def forwarding_header(scope: dict[str, Any]) -> str:
    """A header that shows that a request did not come by itself from one of Flower's programs; or nothing."""
    names = (name.decode("latin1").lower() for name, _ in scope.get("headers", ()))
    found = next((name for name in names if not HEADERS.fullmatch(name)), None)
    return "" if found is None else f" with the header {printable(found, 40)!r}, as a forwarder sends it"


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
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn would put what a header says in the place of who asks
    extensions.get_middleware = lambda: (Middleware(Gate),)
    flower_superlink()
