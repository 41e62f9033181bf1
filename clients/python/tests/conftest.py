"""What the tests stand on: a server that SAGITTA_TEST_URI names, and a schema of its own for each test.

Tests that need a server are skipped, with the reason, if none is named. With SAGITTA_TEST_REQUIRED=1 a skip of any kind
fails the run.
"""

import importlib.util
import os
import pathlib
import uuid

import pytest

import sagitta

URI = os.environ.get("SAGITTA_TEST_URI")
REQUIRED = os.environ.get("SAGITTA_TEST_REQUIRED") == "1"
NO_SERVER = (
    "SAGITTA_TEST_URI IS NOT SET, so nothing that needs a server was tested: start one with "
    "`sagitta serve --data DIR --listen 127.0.0.1:32100` and set SAGITTA_TEST_URI=grpc://127.0.0.1:32100"
)


def pytest_ignore_collect(collection_path: pathlib.Path):
    """SQLAlchemy's own suite is started by itself: its plugin must not see the other tests."""
    if collection_path.name == "sqlalchemy_suite":
        return True
    needed = {"test_polars": "polars", "test_spark": "pyspark", "test_sqlalchemy": "sqlalchemy"}
    for start, module in needed.items():
        if collection_path.name.startswith(start) and importlib.util.find_spec(module) is None:
            if REQUIRED:
                raise pytest.UsageError(f"{collection_path.name} needs {module}; install sagitta[{module}]")
            return True
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if "uri" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def uri() -> str:
    """The address of the server."""
    if URI is None:
        if REQUIRED:
            raise pytest.UsageError(NO_SERVER)
        pytest.skip(NO_SERVER)
    return URI


@pytest.fixture
def connection(uri):
    with sagitta.connect(uri) as opened:
        yield opened


@pytest.fixture
def lab(connection) -> str:
    """A schema of this test."""
    name = f"lab_{uuid.uuid4().hex[:12]}"
    connection.execute(f"CREATE SCHEMA {name}")
    yield name
    connection.execute(f"DROP SCHEMA {name} CASCADE")
