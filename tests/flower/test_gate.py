"""The gate: another machine reaches the devices' interface and nothing else; Flower still asks for it."""

import asyncio

import pytest

from airpfed.flower.superlink import Gate, same_machine

NEAR, FAR = ("127.0.0.1", 4000), ("192.0.2.7", 4000)
SERVER = ("192.0.2.1", 9500)


def asked(path: str, client: tuple[str, int] | None, kind: str = "http") -> int:
    """Status of a request; 200 where it was let through."""
    sent: list[dict] = []

    async def app(scope: dict, receive: object, send: object) -> None:
        sent.append({"status": 200})

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {}

    asyncio.run(Gate(app)({"type": kind, "path": path, "client": client, "server": SERVER}, receive, send))
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/activate-node", "/health"])
def test_devices_reach_their_interface(path: str) -> None:
    assert asked(path, FAR) == asked(path, NEAR) == 200


CLOSED = [
    "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/runtime/push-messages",
    "/docs", "/openapi.json", "/", "/v1/fleet", "/V1/FLEET/x", "//v1/fleet/x", "/v1/./fleet/x",
    "/v1/control/../fleet/x", "/v1/fleet/../control/start-run", "/v1/fleet/x\n/v1/control/start-run",
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_all_else_is_for_this_machine_only(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert asked(path, FAR) == asked(path, None) == 403 and asked(path, NEAR) == 200
    assert f"gate: 192.0.2.7 may not ask for {path!r}" in capfd.readouterr().err
    assert asked(path, FAR, "websocket") == 1008
    assert asked("", None, "lifespan") == 200


def test_a_machine_is_itself_by_loopback_or_by_its_own_address() -> None:
    for client, server, same in [
        ("127.0.0.1", "127.0.0.1", True), ("127.3.2.1", "192.0.2.1", True), ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::", True), ("192.0.2.1", "192.0.2.1", True), ("192.0.2.7", "192.0.2.1", False),
        ("::ffff:192.0.2.7", "::", False), ("testclient", "192.0.2.1", False),
    ]:  # fmt: skip
        assert same_machine((client, 1), (server, 2)) is same, client


def test_superlink_builds_its_interfaces_behind_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the wrapper replaces are the ones that Flower 1.41 uses; the gate is outermost."""
    from flwr.superlink import extensions, main
    from starlette.middleware import Middleware

    monkeypatch.setattr(extensions, "get_middleware", lambda: (Middleware(Gate),))
    assert main._get_middleware()[0].cls is Gate
    paths = {route.path for route in [*main.control_router.routes, *main.fleet_router.routes]}
    assert {"/v1/control/start-run", "/v1/control/register-node", "/v1/fleet/pull-messages"} <= paths
    assert all(path.startswith("/v1/fleet/") for path in {route.path for route in main.fleet_router.routes})


def test_supernode_has_the_waits_that_the_wrapper_shortens() -> None:
    import inspect

    from flwr.common import constant
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection, start_client_internal

    from airpfed.flower.supernode import HEARTBEAT

    assert "time.sleep(3)" in inspect.getsource(start_client_internal)
    assert constant.HEARTBEAT_MIN_INTERVAL <= HEARTBEAT < constant.HEARTBEAT_DEFAULT_INTERVAL
    for module in (heartbeat, fleet_http_connection):
        assert module.HEARTBEAT_DEFAULT_INTERVAL == constant.HEARTBEAT_DEFAULT_INTERVAL
