"""The ClientApp: it hands each message to the device's trainer and the answer back.

Flower starts a process per message, so a deployed device's app only relays to the resident trainer; in Flower's
simulation the trainer is in the process that Ray keeps.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from airpfed.federation.flower_codec import content, packet_of
from airpfed.federation.ipc import exchange
from airpfed.federation.message import BadPacketError, Packet, refusal

Handle = Callable[[Packet, Context], Packet]

LONGEST = 86_400.0
"""Seconds that a trainer is waited for, whatever the server asks for."""


def app_of(handle: Handle) -> ClientApp:
    """An app that answers every kind of message by `handle`."""
    made = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        try:
            reply = handle(packet_of(message), context)
        except BadPacketError as error:
            reply = refusal(str(error))
        return Message(content(reply), reply_to=message)

    made.train()(answer)
    made.evaluate()(answer)
    made.query("hello")(answer)
    made.query("finish")(answer)
    return made


def relay(packet: Packet, context: Context) -> Packet:
    """The answer of the trainer whose socket the SuperNode's configuration names."""
    path, seconds = Path(str(context.node_config["socket"])), packet.facts.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        seconds = 60.0
    try:
        return exchange(path, packet, float(min(seconds, LONGEST)))
    except TimeoutError as error:
        return refusal(str(error))


app = app_of(relay)
