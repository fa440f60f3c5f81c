"""The gate: another machine reaches the devices' interface and nothing else; Flower still asks for it."""

import asyncio
import re

import pytest

from airpfed.federation.message import safe_line
from airpfed.federation.processes import QUIET, environment

NEAR, FAR = ("127.0.0.1", 4000), ("192.0.2.7", 4000)
SERVER = ("192.0.2.1", 9500)


def asked(
    path: str,
    client: tuple[str, int] | None,
    kind: str = "http",
    method: str = "POST",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    server: object = None,
    raw: bytes | None = None,
) -> int:
    """Status of a request; 200 where it was let through. server: what stands before the gate, by default nothing."""
    sent: list[dict] = []

    async def app(scope: dict, receive: object, send: object) -> None:
        sent.append({"status": 200})

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {}

    scope = {
        "type": kind, "path": path, "client": client, "server": SERVER, "method": method, "headers": list(headers),
        "raw_path": path.encode() if raw is None else raw, "root_path": "", "scheme": "https",
    }  # fmt: skip
    from airpfed.federation.superlink import Gate  # imports all of Flower's server: in the process that tests it only

    asyncio.run((server or Gate)(app)(scope, receive, send))  # type: ignore[operator]
    return sent[0].get("status", sent[0].get("code"))


DEVICES = [("/v1/fleet/pull-messages", "POST"), ("/v1/fleet/activate-node", "POST"), ("/health", "GET")]


@pytest.mark.parametrize(("path", "method"), DEVICES)
def test_devices_reach_their_interface(path: str, method: str) -> None:
    assert asked(path, FAR, method=method) == asked(path, NEAR, method=method) == 200
    for other in {"GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "post", ""} - {method}:
        assert asked(path, FAR, method=other) == 403, other
    assert asked(path, FAR, "websocket", method=method) == 1008


CLOSED = [
    "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/runtime/push-messages",
    "/docs", "/openapi.json", "/", "/v1/fleet", "/V1/FLEET/x", "//v1/fleet/x", "/v1/./fleet/x",
    "/v1/control/../fleet/x", "/v1/fleet/../control/start-run", "/v1/fleet/x\n/v1/control/start-run", "/v1/fleet/",
    "/v1/fleet//x", "/v1/fleet/x/", "/v1/fleet/x;/y", "/v1//fleet/x", "", "*", "/v1/fleet/x\x00", "/v1/fleet/ｘ",
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_all_else_is_for_this_machine_only(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert asked(path, FAR) == asked(path, None) == 403 and asked(path, NEAR) == 200
    assert asked(path, FAR, method="GET") == 403
    assert f"gate: 192.0.2.7 may not ask for {safe_line(path)!r}" in capfd.readouterr().err
    assert asked(path, FAR, "websocket") == 1008
    assert asked("", None, "lifespan") == 200


@pytest.mark.parametrize("raw", [b"/v1%2ffleet/x", b"/v1/fleet/%78", b"/v1/control/..%2f..%2fv1/fleet/x"])
def test_an_encoded_path_is_not_that_of_a_device(raw: bytes) -> None:
    """A server decodes before it asks the gate; devices write plain paths."""
    assert asked("/v1/fleet/x", FAR, raw=raw) == 403 and asked("/v1/fleet/x", FAR, raw=b"/v1/fleet/x") == 200


FORWARDERS = [
    "X-Forwarded-For", "x-forwarded-host", "X-FORWARDED-PROTO", "X-Forwarded", "Forwarded", "X-Real-IP",
    "Via", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Original-URL", "Client-IP",
    "X-ProxyUser-Ip", "Proxy-Connection", "X-Envoy-External-Address", "Fastly-Client-IP", "Upgrade", "x-of-tomorrow",
]  # fmt: skip


@pytest.mark.parametrize("name", FORWARDERS)
def test_what_was_forwarded_is_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Behind a forwarder everybody would come from the forwarder's machine, the server's own perhaps."""
    header = ((name.lower().encode(), b"127.0.0.1"),)
    for client in (NEAR, FAR):
        assert asked("/v1/control/start-run", client, headers=header) == 403
        assert asked("/v1/fleet/pull-messages", client, headers=header) == 403
    assert f"with the header {name.lower()!r}" in capfd.readouterr().err


def test_flowers_own_headers_pass() -> None:
    import httpx
    from flwr.supercore import constant

    wanted = httpx.Request("POST", "https://a/v1/fleet/x", content=b"x", headers={"content-type": "a"}).headers
    sent = [name.lower() for name in (*httpx.Client().headers, *wanted)]
    sent += [name for name in vars(constant).values() if isinstance(name, str) and re.fullmatch("flwr-[a-z-]+", name)]
    assert len(sent) > 10
    assert asked("/v1/fleet/x", FAR, headers=tuple((name.encode(), b"1") for name in sent)) == 200


@pytest.mark.parametrize("trusted", ["*", "192.0.2.7", "0.0.0.0/0"])
def test_nobody_is_believed_who_says_for_whom_he_asks(trusted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server (uvicorn) as it is started: the variable that names trusted forwarders does not reach it."""
    import uvicorn

    from airpfed.federation.superlink import Gate

    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", environment({})["FORWARDED_ALLOW_IPS"])
    seen: list[object] = []

    def behind(app: object) -> object:
        async def look(scope: dict, receive: object, send: object) -> None:
            seen.append(scope["client"][0])
            await Gate(app)(scope, receive, send)

        config = uvicorn.Config(look, log_config=None)
        config.load()
        return config.loaded_app

    header = ((b"x-forwarded-for", b"127.0.0.1"),)
    for client in (NEAR, FAR):
        assert asked("/v1/control/start-run", client, headers=header, server=behind) == 403
    assert seen == [NEAR[0], FAR[0]]


def test_flowers_processes_inherit_nothing_that_opens_other_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLWR_INTERNAL_GRPC_CONTROL_API=1, say, opens a port without the gate."""
    doors = (
        "FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API", "FLWR_OIDC_ENABLED", "FLWR_DATABASE",
        "UVICORN_HOST", "UVICORN_FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY", "forwarded_allow_ips", "SSLKEYLOGFILE",
    )  # fmt: skip
    for name in doors:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:1")
    monkeypatch.setenv("no_proxy", "intranet.example")
    provision = environment({"FLWR_HOME": "x", "NO_PROXY": "192.0.2.1"})
    assert not [name for name in doors if name in provision]
    assert {name for name in provision if "FLWR" in name} == {name for name in QUIET if "FLWR" in name} | {"FLWR_HOME"}
    assert provision["NO_PROXY"] == provision["no_proxy"] == "intranet.example,localhost,127.0.0.1,::1,192.0.2.1"
    assert provision["HTTPS_PROXY"] == "http://proxy.example:1", "base models may come through it"


def test_a_machine_is_itself_by_loopback_or_by_its_own_address() -> None:
    from airpfed.federation.superlink import same_machine

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

    from airpfed.federation.superlink import Gate

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

    from airpfed.federation.supernode import HEARTBEAT

    assert "time.sleep(3)" in inspect.getsource(start_client_internal)
    assert constant.HEARTBEAT_MIN_INTERVAL <= HEARTBEAT < constant.HEARTBEAT_DEFAULT_INTERVAL
    for module in (heartbeat, fleet_http_connection):
        assert module.HEARTBEAT_DEFAULT_INTERVAL == constant.HEARTBEAT_DEFAULT_INTERVAL
