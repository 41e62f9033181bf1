"""Flight SQL without ADBC, for programs that read one answer in many places: where its parts are, and one part."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.flight as flight

from ._connection import Login, TlsOptions
from ._uri import Target

ENDPOINTS_HEADER = b"x-sagitta-endpoints"
"""Asks the server to give an answer in up to this many parts."""

RENEW_SECONDS = 60
"""How often a fetch says that the answer is still wanted."""

_STATEMENT_QUERY = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"


@dataclasses.dataclass(frozen=True)
class Access:
    """What it takes to speak to a server from another machine: it can be pickled, and then holds what the login holds."""

    target: Target
    login: Login = dataclasses.field(repr=False)
    tls: TlsOptions = dataclasses.field(repr=False)

    def client(self) -> flight.FlightClient:
        """A connection of its own."""
        options = {
            "tls_root_certs": self.tls.root_certs,
            "cert_chain": self.tls.client_cert,
            "private_key": self.tls.client_key,
            "override_hostname": self.tls.server_name,
            "disable_server_verification": self.tls.skip_verify or None,
        }
        return flight.FlightClient(self.target.location, **{name: value for name, value in options.items() if value})

    def authorization(self, client: flight.FlightClient) -> list[tuple[bytes, bytes]]:
        """The headers that say who asks; a user and a password are exchanged for a token."""
        if self.login.token is not None:
            return [(b"authorization", f"Bearer {self.login.token}".encode())]
        if self.login.user is not None:
            return [client.authenticate_basic_token(self.login.user, self.login.password or "")]
        return []


@dataclasses.dataclass(frozen=True)
class Parts:
    """An answer that is yet to be fetched."""

    schema: pa.Schema
    endpoints: list[bytes]
    headers: list[tuple[bytes, bytes]] = dataclasses.field(repr=False)


def plan(access: Access, sql: str, parts_max: int) -> Parts:
    """Has a query planned, its answer in at most `parts_max` parts. Every part is of one version of each table."""
    with access.client() as client:
        headers = access.authorization(client)
        options = flight.FlightCallOptions(headers=[*headers, (ENDPOINTS_HEADER, str(parts_max).encode())])
        info = client.get_flight_info(flight.FlightDescriptor.for_command(_statement(sql)), options)
        return Parts(info.schema, [endpoint.serialize() for endpoint in info.endpoints], headers)


def fetch(access: Access, endpoint: bytes, headers: list[tuple[bytes, bytes]]) -> Iterator[pa.RecordBatch]:
    """The batches of one part. While they are fetched, the server is told to keep the answer."""
    ticket = flight.FlightEndpoint.deserialize(endpoint).ticket
    options = flight.FlightCallOptions(headers=headers)
    with access.client() as client:
        _renew(client, endpoint, options)
        renewed_at = time.monotonic()
        stream = client.do_get(ticket, options)
        try:
            for chunk in stream:
                if chunk.data is not None and chunk.data.num_rows:
                    yield chunk.data
                if time.monotonic() - renewed_at > RENEW_SECONDS:
                    _renew(client, endpoint, options)
                    renewed_at = time.monotonic()
        finally:
            stream.cancel()  # Nothing, if the stream is at its end.


def _renew(client: flight.FlightClient, endpoint: bytes, options: flight.FlightCallOptions) -> None:
    """Lets an answer wait longer. If that fails the fetch says why, or nothing is lost."""
    with contextlib.suppress(pa.ArrowException, KeyError, NotImplementedError):
        list(client.do_action(flight.Action("RenewFlightEndpoint", _field(1, endpoint)), options))


def _statement(sql: str) -> bytes:
    """`CommandStatementQuery { query: sql }` in an `Any`, in the bytes of protobuf."""
    return _field(1, _STATEMENT_QUERY) + _field(2, _field(1, sql.encode()))


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of kind 2: its key, its length, its bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
