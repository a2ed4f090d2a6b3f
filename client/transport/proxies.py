"""The proxy through which a service is reached, by the environment. Knows no transport.

`HTTP_PROXY` or `HTTPS_PROXY`, by the scheme of the service's URL, else `ALL_PROXY`; `NO_PROXY` lists the hosts that are
reached directly. A name in lower case goes before the same name in upper case. This machine is never reached through a
proxy, which would see its API key.
"""

import re
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

SCHEMES = ("http", "https", "socks5", "socks5h")
SOCKS_PACKAGES = {"socksio": "httpx[socks]", "python_socks": "python-socks"}
"""The modules with which httpx and websockets reach a SOCKS proxy, and the packages that have them."""


class Proxy(NamedTuple):
    url: str
    setting: str
    """The variable with its value, without credentials."""
    variable: str

    def require(self, module: str) -> None:
        """Raises ValueError if this is a SOCKS proxy, and the module that the transport needs for it is missing."""
        if self.url.startswith("socks") and find_spec(module) is None:
            raise ValueError(
                f"{self.setting}: a SOCKS proxy needs {SOCKS_PACKAGES[module]}: pip install "
                f"{' '.join(map(repr, SOCKS_PACKAGES.values()))}, or unset {self.variable}, or add the service's host "
                "to NO_PROXY"
            )


def choose(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """Returns the proxy for the service with this URL; None if it is reached directly.

    Raises ValueError for a variable that names no proxy or no network.
    """
    service = urlsplit(url)
    host = (service.hostname or "").rstrip(".")
    if _is_local(host):
        return None
    for name in (f"{service.scheme}_proxy", "all_proxy"):
        variable, value = _variable(name, environment)
        if value:
            return None if _is_excluded(host, service, environment) else _proxy(variable, value)
    return None


def _variable(name: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Returns the variable's name, in the case in which it is set, and its value; an empty value if it is not set."""
    if name in environment:
        return name, environment[name].strip()
    if name == "http_proxy" and "REQUEST_METHOD" in environment:
        return name, ""  # in a CGI script HTTP_PROXY is the header `Proxy` of the request
    return name.upper(), environment.get(name.upper(), "").strip()


def _proxy(variable: str, value: str) -> Proxy:
    shown = f"{variable}={re.sub(r'^([^/@]*://)?.*@', lambda found: found[1] or '', value, flags=re.DOTALL)}"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        is_address = (
            parts.scheme in SCHEMES and parts.hostname and not (parts.path.strip("/") or parts.query or parts.fragment)
        )
        port = parts.port
    except ValueError:
        is_address, port = False, None
    if not is_address:
        raise ValueError(
            f"{shown} is not the address of a proxy; expected one such as http://proxy.example:3128, with the scheme "
            f"{', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}; correct or unset {variable}"
        )
    user = "" if parts.username is None else f"{parts.username}:{parts.password or ''}@"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return Proxy(f"{parts.scheme}://{user}{host}" + (f":{port}" if port else ""), shown, variable)


def _is_local(host: str) -> bool:
    """Returns True for the names and addresses of this machine itself."""
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Returns the IP address that the host is, also in a short form such as 127.1; None if it is a name."""
    try:
        address = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_excluded(host: str, service: SplitResult, environment: Mapping[str, str]) -> bool:
    """Returns True if NO_PROXY lists the host: as a name, a domain, an address, or a network such as 10.0.0.0/8.

    An entry may end in a port. `*` lists all hosts.
    """
    variable, value = _variable("no_proxy", environment)
    port = service.port or {"http": 80, "https": 443}[service.scheme]
    address = _address(host)
    for entry in re.split(r"[\s,]+", value.lower()):
        name = entry.rpartition("://")[2]
        if "/" in name:
            try:
                network = ip_network(name.replace("[", "").replace("]", ""), strict=False)
            except ValueError:
                raise ValueError(f"{variable}: {entry!r} is not a network; expected one such as 10.0.0.0/8") from None
            if address is not None and address in network:
                return True
            continue
        name = name.removesuffix(f":{port}") if name.count(":") == 1 or "]" in name else name
        name = name.strip("[]").removeprefix("*").strip(".") or entry
        listed = _address(name)
        if name == "*" or (listed == address if listed else host == name or host.endswith(f".{name}")):
            return True
    return False
