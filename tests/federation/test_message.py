"""Parcels: what was sent comes back; whatever else comes is refused, never believed, never a crash."""

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed.federation.ipc import exchange, read_packet
from airpfed.federation.message import BadPacketError, Packet, encoded, head_of, packet_from, refusal, safe_line

numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
facts = st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | numbers | st.text(), max_size=4)
bodies = st.dictionaries(st.text(max_size=6), st.binary(min_size=1, max_size=40), max_size=3)
packets = st.builds(Packet, st.text(max_size=8), facts, bodies)


def through(data: bytes, limit: int | None = None) -> Packet:
    """What a socket makes of these bytes."""
    left, right = socket.socketpair()
    with left, right:
        left.sendall(data)
        left.shutdown(socket.SHUT_WR)
        right.settimeout(2)
        return read_packet(right, limit)


@settings(max_examples=100, deadline=None)
@given(packets)
def test_a_parcel_comes_back(packet: Packet) -> None:
    assert through(encoded(packet)) == packet == packet_from(head_of(packet), packet.bodies)


@settings(max_examples=300, deadline=None)
@given(packets, st.data())
def test_changed_bytes_are_never_another_parcel(packet: Packet, data: st.DataObject) -> None:
    """One byte changed, cut off or added in front: refused, or (a space in the JSON, say) the same parcel."""
    sent = bytearray(encoded(packet))
    place = data.draw(st.integers(0, len(sent) - 1))
    match data.draw(st.sampled_from(["change", "cut", "add"])):
        case "change":
            sent[place] ^= data.draw(st.integers(1, 255))
        case "cut":
            del sent[place:]
        case "add":
            sent.insert(place, data.draw(st.integers(0, 255)))
    with suppress(BadPacketError, EOFError):
        assert through(bytes(sent)) == packet


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda body: len(body).to_bytes(4, "big") + body))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises((BadPacketError, EOFError)):
        through(noise)


def head(**changed: object) -> dict[str, object]:
    return {"kind": "a", "facts": {}, "lengths": {}, "sha256": "", **changed}


HEADS = [
    [], {}, 3, head(facts={"a": 2**63}), head(facts={"a": -(10**4000)}),
    head(kind=1), head(facts=[]), head(facts={"a": float("nan")}), head(sha256=None),
    *(head(lengths=lengths) for lengths in ({"x": -5}, {"x": 0}, {"x": "9"}, [3], {"x": True}, {"x": 1e9})),
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_head_of_another_form_is_refused(head: object) -> None:
    data = json.dumps(head).encode()
    with pytest.raises((BadPacketError, EOFError)):
        through(len(data).to_bytes(4, "big") + data + b"123456789")
    with pytest.raises(BadPacketError):
        packet_from(data, {})


def test_deep_json_is_refused() -> None:
    with pytest.raises(BadPacketError):
        packet_from("[" * 100_000 + "]" * 100_000, {})


@pytest.mark.parametrize("value", ["1e999", "-1e999", "9" * 5000, "[" * 9 + "]" * 9, '"' + "x" * (1 << 24) + '"'])
def test_values_that_no_machine_can_use_are_refused(value: str) -> None:
    """1e999 is JSON and becomes infinity; five thousand digits are more than Python reads."""
    data = f'{{"kind": "done", "facts": {{"loss": {value}}}, "lengths": {{}}, "sha256": ""}}'
    with pytest.raises(BadPacketError) as refused:
        packet_from(data, {})
    assert len(str(refused.value)) < 100


WORDS = {
    "a\nround 9: device 0 is absent\r\nb": "a round 9: device 0 is absent b",
    "\x1b[2J\x1b[Hgone": "?[2J?[Hgone",
    "\u202eabc\u2066": "?abc?",
    "a\u2028b\u2029c\x85d\x0be": "a b c d e",
    "\ud800 \x00 \x7f \u200b \ufeff": "? ? ? ? ?",
    "naïve 数": "naïve 数",
}


@pytest.mark.parametrize("text", WORDS)
def test_what_others_say_is_one_line_that_moves_no_cursor(text: str) -> None:
    shown = safe_line(text)
    assert shown == WORDS[text]
    assert shown.encode() and shown.isprintable()


@pytest.mark.parametrize("value", ["x" * 10**6, " " * 10**6 + "x", {"a": ["b" * 10**5]}, [["\n"] * 10**5], "y " * 150])
def test_what_others_say_is_cut(value: object) -> None:
    for limit in (4, 40, 300):
        assert len(safe_line(value, limit)) <= limit
    assert len(str(refusal(str(value)).facts["why"])) <= 300
    assert safe_line("x" * 300) == "x" * 300 and safe_line("x" * 301) == "x" * 297 + "..."


def test_oversize_is_refused_before_it_is_read() -> None:
    big = encoded(Packet("train", {}, {"global": b"x" * 1000}))
    with pytest.raises(BadPacketError, match="oversize: 1000 bytes, at most 999"):
        through(big[:-900], 999)
    with pytest.raises(BadPacketError, match="oversize"):
        through((1 << 30).to_bytes(4, "big") + b"{}")


def test_the_relay_waits_for_a_trainer_that_starts_late_or_dies_while_it_answers(tmp_path: Path) -> None:
    """The first trainer hangs up without an answer, as one that is killed; the next one answers."""
    door = tmp_path / "t.sock"

    def trainers() -> None:
        for answers in (False, True):
            door.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as place:
                place.bind(str(door))
                place.listen()
                line, _ = place.accept()
                with line:
                    asked = read_packet(line, None)
                    if answers:
                        line.sendall(encoded(Packet("done", asked.facts)))

    thread = threading.Timer(0.2, trainers)
    thread.start()
    assert exchange(door, Packet("train", {"round": 3}), 10.0) == Packet("done", {"round": 3})
    thread.join()


def test_the_relay_gives_up_in_time(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 s"):
        exchange(tmp_path / "nobody.sock", Packet("hello"), 0.2)
