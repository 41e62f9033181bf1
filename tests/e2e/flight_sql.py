"""Flight SQL by hand: the messages that no Python client sends, or that one would like to send wrong."""

import contextlib
import dataclasses
import os
import pathlib
import re
import select
import signal
import subprocess
import time

import pyarrow.flight as flight
from conftest import binary

PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."
START_SECONDS_MAX = 60


def varint(number: int) -> bytes:
    out = b""
    while True:
        number, low = number >> 7, number & 0x7F
        out += bytes([low | (0x80 if number else 0)])
        if not number:
            return out


def field(number: int, value: bytes | str | int | bool) -> bytes:
    """One field of a protobuf message: a number, or anything that has a length."""
    if isinstance(value, (bool, int)):
        return varint(number << 3) + varint(int(value))
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(data: bytes) -> dict[int, list]:
    """The fields of a protobuf message by number."""
    out: dict[int, list] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            value = number()
        elif key & 7 == 2:
            length = number()
            value = data[at : at + length]
            at += length
        else:
            value = data[at : at + 8]
            at += 8
        out.setdefault(key >> 3, []).append(value)
    return out


def command(name: str, *body: bytes) -> bytes:
    """A command inside an `Any`."""
    return field(1, PREFIX + name) + field(2, b"".join(body))


def statement(sql: str) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(command("CommandStatementQuery", field(1, sql)))


@dataclasses.dataclass
class Server:
    """A running `sagitta serve`."""

    process: subprocess.Popen
    port: int
    http_port: int
    log: pathlib.Path

    @property
    def uri(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def client(self, login: tuple[str, str] | None = ("anybody", "")) -> "Client":
        return Client(self, login)


class Client:
    """A pyarrow client with a session."""

    def __init__(self, server: Server, login: tuple[str, str] | None):
        self.flight = flight.FlightClient(server.uri)
        self.options_headers = [] if login is None else [self.flight.authenticate_basic_token(*login)]
        self.options = flight.FlightCallOptions(headers=self.options_headers)

    def info(self, sql: str) -> flight.FlightInfo:
        return self.flight.get_flight_info(statement(sql), self.options)

    def get(self, ticket) -> flight.FlightStreamReader:
        return self.flight.do_get(ticket, self.options)

    def rows(self, sql: str) -> list[dict]:
        return [row for endpoint in self.info(sql).endpoints for row in self.get(endpoint.ticket).read_all().to_pylist()]

    def act(self, name: str, body: bytes) -> list[bytes]:
        return [result.body.to_pybytes() for result in self.flight.do_action((name, body), self.options)]

    def prepare(self, sql: str) -> dict[int, list]:
        """The fields of ActionCreatePreparedStatementResult."""
        (body,) = self.act("CreatePreparedStatement", command("ActionCreatePreparedStatementRequest", field(1, sql)))
        return fields(fields(body)[2][0])


@contextlib.contextmanager
def serving(data, folder: pathlib.Path, *options: str, environment: dict[str, str] | None = None):
    """Starts a server on free ports; it must end well when it is told to."""
    log = folder / "serve.log"
    words = ["serve", "--data", str(data), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *options]
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [binary(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield started(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=START_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert process.returncode == 0, log.read_text()
    assert "panicked" not in log.read_text(), log.read_text()


def started(process: subprocess.Popen, log: pathlib.Path) -> Server:
    until = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < until:
        text = log.read_text()
        flight_sql = re.search(r"Flight SQL +\S+?:(\d+)", text)
        http = re.search(r"HTTP +http://\S+?:(\d+)", text)
        if flight_sql and http and "Ctrl-C" in text:
            return Server(process, int(flight_sql[1]), int(http[1]), log)
        assert process.poll() is None, text
        select.select([], [], [], 0.05)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")
