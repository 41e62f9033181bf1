"""What every end-to-end test stands on: the built binary (SAGITTA_BIN), run on a folder of its own.

The tests drive `sagitta` as a user does and compare with what other programs say: NumPy, DuckDB, Lance's Python package.
"""

import dataclasses
import io
import json
import os
import pathlib
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STATEMENT_SECONDS_MAX = 300


def binary() -> str:
    path = os.environ.get("SAGITTA_BIN")
    if not path or not os.access(path, os.X_OK):
        raise pytest.UsageError("SAGITTA_BIN must name the built binary; tests/run.sh sets it")
    return path


@dataclasses.dataclass
class Sagitta:
    """The command line on one database: a folder, or a server that `options` connect to."""

    data: str
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    options: tuple[str, ...] = ()

    def start(self, *arguments: str, **popen) -> subprocess.Popen:
        where = [] if "--connect" in self.options else ["--data", self.data]
        return subprocess.Popen(
            [binary(), *where, "--no-progress", *self.options, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.environment},
            **popen,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=STATEMENT_SECONDS_MAX)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err.decode())

    def ok(self, *arguments: str) -> bytes:
        """What it prints; it must end well."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}\nstatus {done.returncode}\n{done.stdout.decode()}\n{done.stderr}"
        return done.stdout

    def sql(self, *statements: str) -> list[dict]:
        """The rows of all statements, as dicts."""
        words = [word for statement in statements for word in ("-c", statement)]
        return [json.loads(line) for line in self.ok("--quiet", "--format", "jsonl", *words).splitlines() if line]

    def value(self, statement: str):
        """The only value of the only row."""
        (row,) = self.sql(statement)
        (value,) = row.values()
        return value

    def column(self, statement: str) -> list:
        """The first column."""
        return [next(iter(row.values())) for row in self.sql(statement)]

    def table(self, statement: str) -> pa.Table:
        """The answer in Arrow, with its types."""
        out = self.ok("--quiet", "--format", "arrow", "-c", statement)
        return pa.ipc.open_stream(io.BytesIO(out)).read_all()

    def fails(self, *statements: str) -> str:
        """The error of statements that must fail, as the user sees it."""
        return self.refuses(*[word for statement in statements for word in ("-c", statement)])

    def refuses(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 1, f"{arguments}\nstatus {done.returncode}\n{done.stdout.decode()}\n{done.stderr}"
        assert "panicked" not in done.stderr, done.stderr
        return done.stderr

    def load(self, source, table: str, *options: str) -> None:
        self.ok("import", str(source), "--table", table, *options)


@pytest.fixture
def sagitta(tmp_path) -> Sagitta:
    """A database in a folder of this test."""
    return Sagitta(str(tmp_path / "data"))


@dataclasses.dataclass
class Packages:
    """The shipped data, as NumPy sees it."""

    rows: list[dict]
    vectors: np.ndarray
    wishes: np.ndarray

    def cosine(self, query: np.ndarray) -> np.ndarray:
        return cosine(self.vectors, query)

    def vector_of(self, name: str) -> np.ndarray:
        return self.vectors[[row["name"] for row in self.rows].index(name)]


def cosine(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """1 - cosine of every row, in double precision."""
    return 1 - vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of vectors without NULL as rows of doubles."""
    array = column.combine_chunks()
    dimensions = array.type.list_size
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions).astype(np.float64)


@pytest.fixture(scope="session")
def packages() -> Packages:
    table = pq.read_table(ROOT / "examples/packages.parquet")
    wishes = pq.read_table(ROOT / "examples/wishes.parquet")
    return Packages(table.drop(["embedding"]).to_pylist(), matrix(table["embedding"]), matrix(wishes["embedding"]))


@pytest.fixture(scope="session")
def loaded(tmp_path_factory) -> Sagitta:
    """The shipped data, loaded once; tests only read it."""
    database = Sagitta(str(tmp_path_factory.mktemp("packages") / "data"))
    database.load(ROOT / "examples/packages.parquet", "packages")
    database.load(ROOT / "examples/wishes.parquet", "wishes")
    return database


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    return ROOT / "tests/fixtures"


def text(vector) -> str:
    """A vector as SQL text."""
    return "[" + ",".join(repr(float(value)) for value in vector) + "]"
