"""Flower's SuperNode with shorter waits; run as `python -m airpfed.federation.supernode` with SuperNode's options.

Flower 1.41 polls for messages every 3 s. After a crash it admits a device again only when two heartbeats of 30 s are
missing. Neither interval is a setting of Flower. Here the poll interval is 0.5 s and the heartbeat 10 s, the smallest
that SuperLink accepts.
"""

import time
from types import SimpleNamespace

from flwr.common import constant

LOOK = 0.5
"""Poll interval in seconds."""

HEARTBEAT = 10

if __name__ == "__main__":
    constant.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT  # before the modules that read it are imported
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    start_client_internal.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, LOOK)))  # type: ignore
    flower_supernode()
