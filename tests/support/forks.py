"""Functions called in children of a process that was forked before anything had computed.

A child of a process whose torch has run on several threads does not live through its first product of matrices. So each
test process forks once, when all modules of tests are imported and none has run, and its child forks again for every
call: nothing is imported a second time, and what a call leaves behind ends with it.
"""

import inspect
import os
import pickle
import socket
import struct
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

_server: tuple[int, socket.socket] | None = None


def start() -> None:
    """Fork the process that calls are made from."""
    global _server
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        try:
            _serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    _server = child, ours


def stop() -> None:
    """End it, and wait for it: its processor time is this process's."""
    global _server
    if _server is None:
        return
    child, ours = _server
    _server = None
    ours.close()
    os.waitpid(child, 0)


def call(function: Callable[..., Any], *words: Any) -> Any:
    """What a function of a module returns in a process of its own.

    What it prints goes nowhere. Raises AssertionError with the traceback of what it raised, or where its process ended.
    """
    assert _server is not None, "forked before the first test"
    _send(_server[1], (function, words))
    result, failure = _receive(_server[1])
    assert not failure, failure
    return result


def forked(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a process of its own, which may change whatever it likes."""

    @wraps(test)
    def called() -> None:
        call(called)

    return called


def _serve(place: socket.socket) -> None:
    """Answer calls until nobody is there to ask."""
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            request = _receive(place)
        except EOFError:
            return
        child = os.fork()
        if child == 0:
            code = 1
            try:
                null = os.open(os.devnull, os.O_RDWR)
                for number in (0, 1, 2):
                    os.dup2(null, number)
                function, words = request
                try:
                    answer: tuple[Any, str] = inspect.unwrap(function)(*words), ""
                except BaseException:
                    answer = None, traceback.format_exc()
                _send(place, answer)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if status:
            _send(place, (None, f"the process of {request[0].__qualname__} ended with status {status}"))


def _send(place: socket.socket, value: Any) -> None:
    data = pickle.dumps(value)
    place.sendall(struct.pack("!Q", len(data)) + data)


def _receive(place: socket.socket) -> Any:
    size = struct.unpack("!Q", _exactly(place, 8))[0]
    return pickle.loads(_exactly(place, size))


def _exactly(place: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = place.recv(min(count - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
