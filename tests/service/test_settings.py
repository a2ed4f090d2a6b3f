"""Invalid settings are refused by name, and the service listens on this machine only by default."""

import pytest

from onward.service import settings
from onward.service.settings import SettingsError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(settings.PREFIX + name.upper(), raising=False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ONWARD_PORT", "8000", "ONWARD_PORT: no such setting"),
        ("ONWARD_WORKERS", "many", "ONWARD_WORKERS: "),
        ("ONWARD_WORKERS", "0", "ONWARD_WORKERS: "),
        ("ONWARD_TTL_S", "-1", "ONWARD_TTL_S: "),
        ("ONWARD_TTL_S", "nan", "ONWARD_TTL_S: "),
        ("ONWARD_BIND", "8000", "ONWARD_BIND: expected host:port"),
        ("ONWARD_BIND", "127.0.0.1:99999", "ONWARD_BIND: expected host:port"),
        ("ONWARD_STORE", "sqlite:///x", "ONWARD_STORE: expected lmdb:///path"),
        ("ONWARD_STORE", "lmdb://host/x", "ONWARD_STORE: expected lmdb:///path"),
        ("ONWARD_STORE", "redis:///x", "ONWARD_STORE: expected lmdb:///path"),
        ("ONWARD_STORE", "unix://host/x", "ONWARD_STORE: expected lmdb:///path"),
        ("ONWARD_STORE", "redis://host:many/0", "ONWARD_STORE: Port could not be cast"),
        ("ONWARD_STORE", "redis+sentinel://host:1/0", "ONWARD_STORE: expected lmdb:///path"),
        ("ONWARD_FSYNC", "never", "ONWARD_FSYNC: "),
        ("ONWARD_BIND", "0.0.0.0:8000", "ONWARD_ALLOW_ANYONE=1"),
        ("ONWARD_BIND", "[::]:8000", "ONWARD_ALLOW_ANYONE=1"),
        ("ONWARD_BIND", "example.org:8000", "ONWARD_ALLOW_ANYONE=1"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """The message has the name of the variable and the values that it accepts."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        settings.read()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "store",
    [
        "lmdb:///var/lib/onward", "unix:///run/valkey.sock", "redis://host", "redis://me:secret@host:6379/1",
        "rediss://host:6379", "redis+cluster://host:6379", "rediss+cluster://[::1]:6379",
    ],
)  # fmt: skip
def test_each_kind_of_store_is_accepted(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    """The URI of each kind of store is valid."""
    monkeypatch.setenv("ONWARD_STORE", store)
    assert settings.read().store == store


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:0", "127.9.9.9:80", "localhost:8000", "[::1]:8000", "unix:/run/onward.sock"]
)
def test_a_local_address_needs_no_permission(monkeypatch: pytest.MonkeyPatch, bind: str) -> None:
    """An address of this machine needs no ONWARD_ALLOW_ANYONE."""
    monkeypatch.setenv("ONWARD_BIND", bind)
    assert settings.read().bind == bind


def test_permission_opens_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONWARD_ALLOW_ANYONE allows an address that other machines can reach."""
    monkeypatch.setenv("ONWARD_BIND", "0.0.0.0:8000")
    monkeypatch.setenv("ONWARD_ALLOW_ANYONE", "1")
    assert settings.read().bind == "0.0.0.0:8000"
