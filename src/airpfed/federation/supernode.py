"""Flower's SuperNode with shorter waits; run as `python -m airpfed.federation.supernode`, with SuperNode's options.

Flower 1.41 looks for messages every 3 s, and after a crash lets a device back in only when two heartbeats of 30 s are
missing. Neither is a setting there. Here it is 0.5 s, and heartbeats are 10 s apart, the least that SuperLink takes.
"""

import time
from types import SimpleNamespace

from flwr.common import constant

LOOK = 0.5
"""Seconds between looks for a message."""

HEARTBEAT = 10

if __name__ == "__main__":
    constant.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT  # before the modules that read it are loaded
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    start_client_internal.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, LOOK)))  # type: ignore
    flower_supernode()
