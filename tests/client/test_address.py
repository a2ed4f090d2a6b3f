"""Addresses and API keys: both clients accept and refuse the same ones."""

import logging
import ssl
import traceback

import httpx
import pytest

from onward.client.transport import http
from tests.client.both_clients import Twin
from tests.e2e.server import Server
from tests.helpers.losing_proxy import LosingProxy


def test_certificates_are_read_for_https_alone() -> None:
    """Over https whoever the machine trusts is trusted; over http, which has no certificates, none are read."""
    assert http.trusted("https://onward.example").cert_store_stats() == httpx.create_ssl_context().cert_store_stats()
    for url in ("http://127.0.0.1:8000", "HTTP://onward.example"):
        trusted = http.trusted(url)
        assert isinstance(trusted, ssl.SSLContext)
        assert trusted.verify_mode is ssl.CERT_REQUIRED
        assert trusted.get_ca_certs() == []


def test_the_key_is_sent_and_told_to_nobody(server: Server, twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with LosingProxy(server.url, 0) as between, twin(between.url, api_key="a-secret-key") as client:
        with client.session("pulse") as session:
            assert "a-secret-key" not in repr(client) + repr(session)
        assert between.heads
        assert all(b"\r\nAuthorization: Bearer a-secret-key\r\n" in head for head in between.heads)
    assert "a-secret-key" not in caplog.text


@pytest.mark.parametrize("key", ["a-secret\nkey", "a-secret-k\u00e9y", "a-secret\x00key"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_told(twin: Twin, key: str) -> None:
    with pytest.raises(ValueError, match="API key") as refused:
        twin("http://127.0.0.1:1", api_key=key)
    assert "a-secret" not in "".join(traceback.format_exception(refused.value))


def test_white_space_around_a_key_is_none_of_it(server: Server, twin: Twin) -> None:
    """As where it is read from a file."""
    with LosingProxy(server.url, 0) as between, twin(between.url, api_key=" a-secret-key\r\n") as client:
        assert client.ready()
        assert b"\r\nAuthorization: Bearer a-secret-key\r\n" in between.heads[0]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_address_is_refused_at_once(twin: Twin, url: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|Port"):
        twin(url)


def test_an_address_may_be_written_in_any_way(server: Server, twin: Twin) -> None:
    """A stream finds the service, too."""
    with twin(server.url.replace("http", "HTTP") + "/") as client, client.session("pulse") as session:
        assert [prediction.step for prediction in session.stream([515.0])] == [1]


def test_what_may_not_be_sent_is_not_tried_again(server: Server, twin: Twin) -> None:
    """The next try would fail in the same way."""
    with twin(server.url) as client:
        client._transport._http.headers["x"] = "a\nb"
        with pytest.raises(httpx.LocalProtocolError):
            client.models()
