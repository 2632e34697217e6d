"""Where a request may go: URLs as they are written, and addresses as they are resolved. No I/O.

What is not plain is refused rather than read in one of several ways: parsers differ, and that is how requests
get to where they should not.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from headgate.errors import ConfigurationError

PORTS = {"http": 80, "https": 443}
PUBLIC_PORTS = frozenset({80, 443, 8080, 8443})
"""Where callbacks to anybody may go: those that web servers use."""
LONGEST_URL = 8192

_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?")
_PLAIN = re.compile(r"[!-~]+")
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Networks that lead to others (6to4 and its relays, Teredo, local NAT64, segment routing), or are special in
# ways that some versions of ipaddress do not know: IANA's special-purpose address registries. And Azure's own
# address inside of every virtual network: Microsoft Learn, "What is IP address 168.63.129.16?".
_REFUSED = tuple(
    map(
        ipaddress.ip_network,
        "192.0.0.0/24 192.88.99.0/24 168.63.129.16/32 "
        "64:ff9b:1::/48 100::/64 2001::/23 2002::/16 3fff::/20 5f00::/16 fec0::/10".split(),
    )
)


@dataclass(frozen=True, slots=True)
class Url:
    """An http or https URL.

    Attributes:
        host: in lower case; an IPv6 address without brackets.
        path: as it was written, ``/`` if empty.
        query: without the question mark.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    @property
    def netloc(self) -> str:
        """Host, and the port if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """What stands in a request's first line."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def shown(self) -> str:
        """For people: without the query, in which there may be secrets."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    def __repr__(self) -> str:
        return f"<Url {self.shown}>"

    def covers(self, other: Url) -> bool:
        """Whether the other is at the same scheme, host and port, and its path begins with these segments."""
        if (self.scheme, self.host, self.port) != (other.scheme, other.host, other.port):
            return False
        mine = self.path.rstrip("/").split("/")
        return other.path.split("/")[: len(mine)] == mine


def read_url(text: object, *, prefix: bool = False) -> Url:
    """The parts of a URL.

    Args:
        prefix: it is one that others begin with, and has no query.

    Raises:
        ConfigurationError: it is none, or one that can be read in several ways.
    """
    if not isinstance(text, str) or len(text) > LONGEST_URL or not _PLAIN.fullmatch(text) or "\\" in text:
        raise ConfigurationError(
            f"expected a URL of at most {LONGEST_URL:,} ASCII characters, without spaces and backslashes"
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"expected a URL; {error}") from None
    if parts.scheme not in PORTS or "://" not in text:
        raise ConfigurationError(f"expected http://… or https://…; got one of {parts.scheme[:20]!r}")
    if "@" in parts.netloc:
        raise ConfigurationError("expected a URL without user and password")
    if "#" in text or (prefix and "?" in text):
        raise ConfigurationError(f"expected a URL without a fragment{' and a query' if prefix else ''}")
    host = (parts.hostname or "").rstrip(".")
    if not _is_host(host, bracketed="[" in parts.netloc) or port == 0:
        raise ConfigurationError(
            f"expected a host's name, in ASCII (xn--…), or address, and a port above 0; got {parts.netloc!r}"
        )
    if _has_dots(parts.path):
        raise ConfigurationError("expected a path without '.' and '..' in it")
    return Url(
        parts.scheme,
        host,
        PORTS[parts.scheme] if port is None else port,
        parts.path or "/",
        parts.query,
    )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's: no loopback, no private network, no multicast…"""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and (found in _MAPPED or found in _NAT64):
        found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if any(found in network for network in _REFUSED if network.version == found.version):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _is_host(host: str, *, bracketed: bool) -> bool:
    if not bracketed:
        return len(host) <= 253 and ".." not in host and _HOST.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


def _has_dots(path: str) -> bool:
    """Whether a server may take a part of it for '.' or '..': encoded once or twice, or with parameters."""
    seen = unquote(unquote(path))
    return any(part.partition(";")[0] in {".", ".."} for part in re.split(r"[/\\]", seen))
