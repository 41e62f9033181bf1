"""The Python client of `clients/python`, installed, with the tests that it brings, against a server of the built binary.

A group of tests whose library is missing here is skipped by name; tests/requirements.txt decides which there are.
"""

import contextlib
import importlib.util
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from conftest import ROOT, binary

CLIENT = ROOT / "clients/python"
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60  # It gives running statements 30.
SUITE_SECONDS_MAX = 1_200
# Each group of the client's tests, and what it needs beside the client itself.
GROUPS = {
    "test_uri.py test_sql.py test_vectors.py test_rows.py": (),
    "test_connection.py test_search.py": ("polars", "pandas"),
    "test_polars.py test_polars_predicates.py": ("polars",),
    "test_spark.py test_spark_options.py": ("pyspark", "pandas"),
    "test_sqlalchemy.py": ("sqlalchemy", "pandas"),
    "test_readme.py": ("polars", "pandas", "sqlalchemy"),
}


def missing(*modules: str) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


if missing("adbc_driver_flightsql"):
    pytest.skip("adbc-driver-flightsql is not installed: THE PYTHON CLIENT IS NOT TESTED", allow_module_level=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(data: pathlib.Path, *arguments: str, scheme: str = "grpc") -> Iterator[str]:
    """A server on a folder: its address. It must end well when it is told to."""
    port, http = free_port(), free_port()
    command = [binary(), "--data", str(data), "serve", "--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http}"]
    # Variables of the tests are none of the server's, and it refuses what it does not know.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGITTA_TEST_")}
    # A file: a pipe that nobody empties would stop the server when it is full.
    log = data.with_name(f"{data.name}.log")
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=written, stderr=written, env=environment
        )
    try:
        wait_until_ready(process, http, log)
        yield f"{scheme}://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=STOP_SECONDS_MAX)
        assert status == 0, f"status {status}\n{log.read_text()[-20_000:]}"
        assert "panicked" not in log.read_text(), log.read_text()[-20_000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen, http: int, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-20_000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", http), timeout=1) as asked:
            asked.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            if b" 200 " in asked.recv(64):
                return
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready within {START_SECONDS_MAX} s")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """Where pip installs the client, as its README says."""
    source, target = tmp_path_factory.mktemp("source") / "python", tmp_path_factory.mktemp("installed")
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*_cache"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("served") / "data") as address:
        yield address


def run(installed: pathlib.Path, uri: str, folder: pathlib.Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "SAGITTA_TEST_URI": uri, "SAGITTA_TEST_REQUIRED": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SUITE_SECONDS_MAX)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.split(".")[0].removeprefix("test_"))
def test_the_tests_of_the_client_pass(installed, uri, group):
    absent = missing(*GROUPS[group])
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed: {group.upper()} NOT TESTED")
    if "spark" in group and shutil.which("java") is None:
        pytest.skip(f"there is no Java: {group.upper()} NOT TESTED")
    run(installed, uri, CLIENT, *[f"tests/{name}" for name in group.split()])


def test_the_suite_of_sqlalchemy_passes(installed, tmp_path):
    if missing("sqlalchemy"):
        pytest.skip("sqlalchemy not installed: ITS SUITE WAS NOT RUN")
    # On a server of its own: the suite counts all tables.
    with served(tmp_path / "data") as uri:
        address = f"sagitta://{uri.partition('://')[2]}/public?ignore_constraints=true"
        run(installed, uri, CLIENT / "tests/sqlalchemy_suite", "--dburi", address)


def test_the_binary_is_the_one_that_is_tested():
    assert os.access(binary(), os.X_OK)
