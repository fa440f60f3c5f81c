"""Flower's SuperLink with a gate: other machines can reach only the interface for devices.

Flower 1.41 serves three interfaces on one port: Fleet (devices, authenticated by their keys), Control (starts runs and
admits keys) and Runtime (the server's own processes). Control and Runtime need no credentials: anyone who reaches them
can run code on the server and on every device. Run as `python -m airpfed.federation.superlink` with SuperLink's
options.
"""

import ipaddress
import os
import re
import sys
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware

from airpfed.federation.message import safe_line

OPEN = {"POST": re.compile(r"/v1/fleet/[a-z-]+"), "GET": re.compile(r"/health")}
"""The paths that devices use, by HTTP method."""

HEADERS = re.compile(
    r"host|connection|keep-alive|user-agent|accept(-encoding|-language)?|content-(type|length|encoding)|"
    r"transfer-encoding|expect|(x-)?flwr-[a-z0-9-]+"
)
"""Headers that Flower's own programs send. Any other header shows that a proxy forwarded the request."""


class Gate:
    """Middleware that answers 403 to requests from other machines outside the interface for devices."""

    def __init__(self, app: Any) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on or refuse it."""
        if (scope["type"] != "http" and scope["type"] != "websocket") or is_admitted(scope):
            await self.app(scope, receive, send)
            return
        path = safe_line(scope["path"], 100)
        who = safe_line((scope.get("client") or ["?"])[0], 60)
        print(f"gate: {who} may not ask for {path!r}{forwarding_header(scope)}", file=sys.stderr, flush=True)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def is_admitted(scope: dict[str, Any]) -> bool:
    """Whether a request was not forwarded and is either for the devices' interface or from this machine."""
    if forwarding_header(scope):
        return False
    return is_device_request(scope) or same_machine(scope.get("client"), scope.get("server"))


def is_device_request(scope: dict[str, Any]) -> bool:
    """Whether a request is for the devices' interface and its path is not encoded."""
    right = OPEN.get(scope.get("method", ""))
    plain = scope.get("raw_path") in (None, scope["path"].encode()) and not scope.get("root_path")
    return scope["type"] == "http" and right is not None and plain and bool(right.fullmatch(scope["path"]))


def forwarding_header(scope: dict[str, Any]) -> str:
    """A note on the first header that Flower's programs do not send, or an empty text."""
    names = (name.decode("latin1").lower() for name, _ in scope.get("headers", ()))
    found = next((name for name in names if not HEADERS.fullmatch(name)), None)
    return "" if found is None else f" with the header {safe_line(found, 40)!r}, as a forwarder sends it"


def same_machine(client: Any, server: Any) -> bool:
    """Whether both ends of a connection are on one machine: loopback, or the address it connected to."""
    if not client or not server:
        return False
    try:
        far, near = ipaddress.ip_address(client[0]), ipaddress.ip_address(server[0])
    except ValueError:
        return False
    mapped = getattr(far, "ipv4_mapped", None)
    return far.is_loopback or (mapped is not None and mapped.is_loopback) or far == near


if __name__ == "__main__":
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # else uvicorn would take the client's address from a header
    extensions.get_middleware = lambda: (Middleware(Gate),)
    flower_superlink()
