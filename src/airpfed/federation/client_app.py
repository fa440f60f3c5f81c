"""The ClientApp: it passes each message to the device's trainer and returns the answer.

Flower starts one process per message. A deployed device's app therefore only relays to the resident trainer. In
Flower's simulation the trainer lives in the process that Ray keeps.
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
"""The longest wait for a trainer in seconds, whatever the server requests."""


def app_of(handle: Handle) -> ClientApp:
    """An app that answers every kind of message with `handle`."""
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
