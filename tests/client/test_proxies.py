"""Proxies that the environment names, for both clients and for the commands, with a real proxy beside the service."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

import onward
from onward.client.transport import proxies
from tests.client.both_clients import Twin
from tests.e2e.server import Server
from tests.helpers.forward_proxy import ForwardProxy
from tests.helpers.reference_loop import ROOT

REMOTE = "http://onward.example:8000"
VARIABLES = [f"{name}_proxy" for name in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def proxy(server: Server) -> Iterator[ForwardProxy]:
    with ForwardProxy(server.url) as running:
        yield running


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of loopback on which nobody listens, and which nobody else takes meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_requests_and_streams_take_the_proxy_of_the_environment(
    twin: Twin, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"user:secret@{proxy.address}")
    with twin(REMOTE) as client, client.session("pulse") as session:
        assert [prediction.step for prediction in session.stream([515.0, 514.0])] == [1, 2]
    lines = [head.partition("\r\n")[0] for head in proxy.heads]
    assert f"POST {REMOTE}/v1/models/pulse/sessions HTTP/1.1" in lines
    assert "CONNECT onward.example:8000 HTTP/1.1" in lines
    assert all("Proxy-Authorization: Basic" in head for head in proxy.heads)


def test_this_machine_is_reached_directly(
    server: Server, twin: Twin, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither requests nor streams, and with them the API key, come to the proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "ws_proxy", "socks_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
    for host in ("127.0.0.1", "localhost", "127.1"):
        with (
            twin(server.url.replace("127.0.0.1", host), api_key="a-secret-key") as client,
            client.session("pulse") as session,
        ):
            assert [prediction.step for prediction in session.stream([515.0])] == [1]
    assert proxy.heads == []


@pytest.mark.parametrize("excluded", ["127.0.0.0/8,::1/128", "onward.example", "*"])
def test_no_proxy_excludes_hosts_and_networks(
    twin: Twin, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, excluded: str
) -> None:
    """The service's host takes the proxy although NO_PROXY has networks; with its own name in NO_PROXY it does not."""
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("NO_PROXY", excluded)
    with twin(REMOTE, patience=0) as client:
        if "/" in excluded:
            client.models()
        else:
            with pytest.raises(onward.UnreachableError):
                client.models()
    assert bool(proxy.heads) == ("/" in excluded)


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://[::1]:8000", {}, None),
        ("http://[::ffff:127.0.0.1]", {}, None),
        ("http://127.200.0.9", {}, None),
        ("http://0.0.0.0:8000", {}, None),
        ("http://LOCALHOST.", {}, None),
        ("http://api.localhost", {}, None),
        ("http://localhost.example", {}, "http://p:1"),
        ("https://a.example", {}, "http://s:2"),
        ("https://a.example", {"https_proxy": ""}, "http://all"),
        ("http://a.example", {"http_proxy": "q:3"}, "http://q:3"),
        ("http://a.example", {"REQUEST_METHOD": "GET"}, "http://all"),
        ("http://a.example", {"HTTP_PROXY": "https://user@[::2]:9/"}, "https://user:@[::2]:9"),
        ("http://a.example", {"NO_PROXY": "example"}, None),
        ("http://a.example", {"NO_PROXY": "b.example .Example"}, None),
        ("http://a.example", {"NO_PROXY": "*.example"}, None),
        ("http://example", {"NO_PROXY": ".example"}, None),
        ("http://anexample", {"NO_PROXY": "example"}, "http://p:1"),
        ("http://a.example", {"NO_PROXY": "a.example:80"}, None),
        ("http://a.example:81", {"NO_PROXY": "a.example:80"}, "http://p:1"),
        ("http://10.1.2.3", {"NO_PROXY": "10.0.0.0/8"}, None),
        ("http://11.1.2.3", {"NO_PROXY": "10.0.0.0/8,,12.1.1.1"}, "http://p:1"),
        ("http://10.1.2.3", {"NO_PROXY": "10.1.2.3"}, None),
        ("http://[fd00::7]:8000", {"NO_PROXY": "fd00::/8"}, None),
        ("http://[fd00::7]:8000", {"NO_PROXY": "[fd00::7]:8000"}, None),
        ("http://[fd00::7]:8000", {"NO_PROXY": "FD00:0::7"}, None),
    ],
)
def test_the_environment_chooses_the_proxy(url: str, environment: dict[str, str], expected: str | None) -> None:
    every = {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://s:2", "ALL_PROXY": "http://all"}
    chosen = proxies.choose(url, every | environment)
    assert (chosen and chosen.url) == expected


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("ALL_PROXY", "ftp://user:secret@proxy.example", "ALL_PROXY=ftp://proxy.example"),
        ("HTTP_PROXY", "http://user:secret@proxy.example:port", "HTTP_PROXY=http://proxy.example:port"),
        ("http_proxy", "user:se/cr@et@[proxy", "http_proxy=[proxy"),
        ("HTTP_PROXY", "http://", "HTTP_PROXY=http://"),
        ("HTTP_PROXY", "proxy.example:3128/path", "HTTP_PROXY=proxy.example:3128/path"),
    ],
)
def test_a_malformed_proxy_is_refused_by_the_name_of_its_variable(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, shown: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match="is not the address of a proxy") as refused:
        twin(REMOTE)
    assert str(refused.value).startswith(f"{shown} is not")
    assert "secret" not in str(refused.value)


def test_a_malformed_network_is_refused_by_the_name_of_its_variable(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,10.0.0.0/33")
    with pytest.raises(ValueError, match=r"NO_PROXY: '10\.0\.0\.0/33' is not a network"):
        twin(REMOTE)


def test_a_dead_proxy_is_named(twin: Twin, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the variable, and its value without credentials."""
    monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@127.0.0.1:{closed_port}")
    named = f"through the proxy HTTP_PROXY=http://127.0.0.1:{closed_port}: "
    with twin(REMOTE, patience=0) as client:
        with pytest.raises(onward.UnreachableError) as unreachable:
            client.models()
        assert named in str(unreachable.value)


def test_a_dead_proxy_of_a_stream_is_named(server: Server, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy ends while a session is open."""
    with ForwardProxy(server.url) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@{proxy.address}")
        client = twin(REMOTE, patience=0)
        session = client.session("pulse", keep=True)
        session.step(515.0)
    with client, pytest.raises(onward.UnreachableError, match="through the proxy HTTP_PROXY=http://127") as unreachable:
        list(session.stream([515.0]))
    assert "secret" not in str(unreachable.value)


def test_a_proxy_that_answers_by_itself_is_named(server: Server, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is no proxy: its answer is not Onward's answer to this request."""
    with ForwardProxy(server.url) as proxy:
        proxy.answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\nConnection: close\r\n\r\nno way"
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        with twin(REMOTE) as client, pytest.raises(onward.Problem, match=r"through the proxy HTTP_PROXY=.*no way"):
            client.models()


def command(server_url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    names = {*VARIABLES, *map(str.upper, VARIABLES)}
    variables = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-m", "onward", *arguments], cwd=ROOT, input="515.0\n", capture_output=True,
        text=True, check=False, env=variables | {"PYTHONPATH": str(ROOT), "ONWARD_URL": server_url} | environment,
    )  # fmt: skip


SOCKS = "ALL_PROXY=socks5://proxy.example:1080: a SOCKS proxy needs "


@pytest.mark.parametrize("arguments", [("models",), ("stream", "--model", "pulse", "-"), ("load", "--model", "pulse")])
def test_a_command_says_in_one_line_what_a_socks_proxy_needs(arguments: tuple[str, ...]) -> None:
    done = command(REMOTE, *arguments, ALL_PROXY="socks5://user:secret@proxy.example:1080")
    assert done.returncode == 1
    assert done.stderr.startswith(f"onward: {SOCKS}httpx[socks]: pip install 'httpx[socks]' 'python-socks', or unset")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_a_command_reaches_this_machine_whatever_the_proxies_are(server: Server) -> None:
    environment = {"ALL_PROXY": "socks5://proxy.example:1080", "HTTP_PROXY": "::", "NO_PROXY": "127.0.0.0/8,::1/128"}
    for arguments in (("models",), ("stream", "--model", "pulse", "-")):
        done = command(server.url, *arguments, **environment)
        assert (done.returncode, done.stderr) == (0, "")
