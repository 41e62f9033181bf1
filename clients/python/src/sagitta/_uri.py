"""Addresses of servers: the forms that are understood, and what each of them means."""

from __future__ import annotations

import dataclasses
import ipaddress
import urllib.parse

PORT = 32_100
"""The port on which `sagitta serve` listens if nothing else is said."""

DEFAULT_URI = f"grpc://127.0.0.1:{PORT}"

_FORMS = "sagitta://host:port, grpc://host:port, grpc+tls://host:port or flightsql://host:port?transport=tcp"
_TLS_OF_SCHEME = {
    "grpc": False,
    "grpc+tcp": False,
    "grpc+tls": True,
    "sagitta+tcp": False,
    "sagitta+tls": True,
    "flightsql": None,
    "sagitta": None,
}


@dataclasses.dataclass(frozen=True)
class Target:
    """One server, and who asks there. `str()` of it never holds the password."""

    host: str
    port: int
    tls: bool
    user: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    schema: str | None = None

    @property
    def address(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def location(self) -> str:
        """The URI that the ADBC driver and `pyarrow.flight` take: transport, host and port alone."""
        return f"grpc+{'tls' if self.tls else 'tcp'}://{self.address}"

    def __str__(self) -> str:
        return self.location


def parse_uri(uri: str) -> Target:
    """Reads the address of a server.

    `grpc://` is plain text and `grpc+tls://` is encrypted. `flightsql://` is encrypted unless `?transport=tcp`, as in the
    ADBC driver. `sagitta://` is plain text to this machine and encrypted to any other, unless `?transport=` says which.
    A user, a password and a schema may be in it: `sagitta://user:password@host:32100/schema`.

    Raises:
        ValueError: a form, scheme or option that is not known. The message never repeats the password.
    """
    if not isinstance(uri, str):
        raise TypeError(f"the address of a server is text such as {DEFAULT_URI}, not {type(uri).__name__}")
    if "://" not in uri:
        raise ValueError(f"{_masked(uri)!r} has no scheme; write {_FORMS}")
    parts = urllib.parse.urlsplit(uri)
    scheme = parts.scheme.lower()
    if scheme not in _TLS_OF_SCHEME:
        raise ValueError(f"the scheme {scheme}:// is not known; write {_FORMS}")
    if parts.fragment:
        raise ValueError(f"an address has no part behind '#'; write {_FORMS}, and %23 for a '#' in a password")
    host = parts.hostname
    if not host:
        raise ValueError(f"{_masked(uri)!r} names no host; write {_FORMS}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"the port of {_masked(uri)!r} is no number from 1 to 65535; write {_FORMS}") from None
    if port == 0:
        raise ValueError(f"port 0 cannot be connected to; the server listens on {PORT} if nothing else is said")
    return Target(
        host=host,
        port=port or PORT,
        tls=_tls(scheme, host, parts.query),
        user=_unquoted(parts.username),
        password=_unquoted(parts.password),
        schema=_schema(parts.path),
    )


def _tls(scheme: str, host: str, query: str) -> bool:
    options = urllib.parse.parse_qs(query, keep_blank_values=True, strict_parsing=bool(query))
    unknown = sorted(options.keys() - {"transport"})
    if unknown:
        raise ValueError(
            f"the address has the option {unknown[0]}, which is not known; there is ?transport=tcp|tls, "
            "and everything else is an argument of connect()"
        )
    transports = options.get("transport", [])
    chosen = _TLS_OF_SCHEME[scheme]
    if not transports:
        if chosen is not None:
            return chosen
        return True if scheme == "flightsql" else not _is_loopback(host)
    if len(transports) > 1 or transports[0] not in ("tcp", "tls"):
        raise ValueError(f"transport is tcp or tls, not {', '.join(transports)!r}; the server listens on TCP alone")
    asked = transports[0] == "tls"
    if chosen is not None and asked != chosen:
        raise ValueError(f"{scheme}:// and ?transport={transports[0]} contradict each other; leave one of them out")
    return asked


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _schema(path: str) -> str | None:
    name = urllib.parse.unquote(path.removeprefix("/"))
    if not name:
        return None
    if "/" in name:
        raise ValueError(f"the path of an address is one schema, not {name!r}")
    return name


def _unquoted(text: str | None) -> str | None:
    return urllib.parse.unquote(text) if text is not None else None


def _masked(uri: str) -> str:
    """The address without what stands before an `@`."""
    scheme, mark, rest = uri.rpartition("://") if "://" in uri else ("", "", uri)
    return scheme + mark + ("…@" + rest.rpartition("@")[2] if "@" in rest else rest)
