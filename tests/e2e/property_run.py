"""One table under test: its server, what each of its versions holds, and what is looked at after each step."""

import collections
import contextlib
import dataclasses
import datetime
import gc
import pathlib
import random
import subprocess
import threading
import time
from collections.abc import Callable

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import numpy as np
import pyarrow as pa
from conftest import Sagitta, binary
from flight_sql import Server, started
from vector_model import ELEMENTS, WORDS, Cloud, Column, State, arrow_table, difference, is_vector, of_arrow

ROWS_FIRST = 6_000
STATEMENT_SECONDS_MAX = 120
INDEXES_KNOWN_SECONDS = 1.1


@dataclasses.dataclass(frozen=True)
class Index:
    """An index as it was made. `origin`: the first name of its column, whatever that is called now."""

    origin: str
    method: str
    metric: str


@dataclasses.dataclass
class Step:
    """Something that is done to the table: how, and what is there afterwards (None: what was there before).

    `sql`: if one statement is all of it. `versions_gone`: those that cannot be read any more.
    """

    words: str
    act: Callable[["Connection"], None]
    after: State | None = None
    indexes: dict[str, Index] | None = None
    tags: dict[str, int] | None = None
    sql: str = ""
    versions_gone: frozenset[int] = frozenset()


class Connection:
    """A client with a session of its own."""

    def __init__(self, server: Server, journal):
        options = {"username": "anybody", "password": ""}
        self.adbc = adbc_driver_flightsql.dbapi.connect(server.uri, db_kwargs=options, autocommit=True)
        self.journal = journal

    def table(self, sql: str, parameters: tuple | None = None) -> pa.Table:
        self.journal.write(f"{sql};\n")
        self.journal.flush()
        with self.adbc.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetch_arrow_table()

    def rows(self, sql: str) -> list[dict]:
        return self.table(sql).to_pylist()

    def ingest(self, name: str, rows: pa.Table, mode: str) -> None:
        self.journal.write(f"-- {rows.num_rows} rows into {name}, {mode}\n")
        with self.adbc.cursor() as cursor:
            cursor.adbc_ingest(name, rows, mode=mode)

    def close(self) -> None:
        with contextlib.suppress(adbc_driver_manager.Error):
            self.adbc.close()


class Run:
    """A table, its server, and what each of its versions holds."""

    def __init__(self, element: str, seed: str, folder: pathlib.Path):
        self.random = random.Random(seed)
        self.element = ELEMENTS[element]
        self.dim = self.random.choice([32, 64, 128] if self.element.is_bit else [16, 24, 40, 64])
        self.cloud = Cloud(self.element, self.dim, self.random.randrange(2**32))
        self.metrics = self.random.sample(self.element.metrics, len(self.element.metrics))
        self.vector_kind = self.element.sql.format(dim=self.dim)
        self.folder, self.data = folder, folder / "data"
        self.journal = (folder / "journal.sql").open("w")
        self.words: list[str] = []
        self.states: dict[int, State] = {}
        self.times: dict[int, datetime.datetime] = {}
        self.tags: dict[str, int] = {}
        self.indexes: dict[str, Index] = {}
        self.numbers, self.next_id = 0, 1
        self.known: list[dict] = []
        self.warnings: list[str] = []
        self.figures: collections.Counter = collections.Counter()
        self.server: Server | None = None

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    @contextlib.contextmanager
    def noting(self, words: str):
        """An error within says these words, and what was done last."""
        try:
            yield
        except BaseException as error:
            error.add_note(words)
            if not hasattr(error, "has_steps"):
                error.has_steps = True
                error.add_note("last:\n  " + "\n  ".join(self.words[-12:]))
            raise

    # The server.

    def start(self) -> None:
        log = self.folder / "serve.log"
        words = [binary(), "serve", "--data", str(self.data), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with log.open("wb") as errors:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        self.server = started(process, log)
        self.plain, self.exact, self.indexed = (Connection(self.server, self.journal) for _ in range(3))
        self.exact.table("SET exact = on")

    def stop(self, is_killed: bool) -> None:
        for connection in (self.plain, self.exact, self.indexed):
            connection.close()
        process = self.server.process
        process.kill() if is_killed else process.terminate()
        process.wait(timeout=60)
        log = self.server.log.read_text()
        assert "panicked" not in log, log[-10_000:]
        self.warnings += [line for line in log.splitlines() if " WARN " in line]
        assert is_killed or process.returncode == 0, log[-10_000:]

    def kill(self) -> None:
        """Ends what an error left running."""
        if self.server is not None and self.server.process.poll() is None:
            self.server.process.kill()
            self.server.process.wait()

    # The table.

    @property
    def version(self) -> int:
        return max(self.states, default=0)

    @property
    def state(self) -> State:
        return self.states[self.version]

    def create(self) -> None:
        columns = f"id BIGINT PRIMARY KEY, a INT, side BIGINT, word TEXT, emb {self.vector_kind}"
        none = np.zeros(0, np.int64)
        self.empty = State(
            {
                "id": Column.full("BIGINT", none),
                "a": Column.full("INT", none),
                "side": Column.full("BIGINT", none),
                "word": Column.full("TEXT", np.zeros(0, "U5")),
                "emb": Column.full(self.vector_kind, np.zeros((0, self.dim), self.element.kind), "emb"),
            }
        )
        self.apply(Step("create", lambda on: on.table(f"CREATE TABLE t ({columns})"), self.empty))
        (self.path,) = self.data.rglob("*.lance")
        rows = self.fresh(ROWS_FIRST)
        self.apply(Step("fill", lambda on: on.ingest("t", self.arrow(rows), "append"), self.state.followed_by(rows)))

    def arrow(self, rows: State) -> pa.Table:
        return arrow_table(rows, self.element)

    def fresh(self, count: int, ids: np.ndarray | None = None) -> State:
        """New rows with the columns that there are now."""
        draw = self.cloud.random
        if ids is None:
            ids = self.next_id + draw.permutation(count + count // 4)[:count]
            self.next_id += count + count // 4
        points = self.cloud.points(len(ids))
        columns = {}
        for name, column in (self.state if self.states else self.empty).columns.items():
            has = draw.random(len(ids)) >= 0.05
            if name == "id":
                columns[name] = Column.full("BIGINT", ids.astype(np.int64))
            elif name == "side":
                columns[name] = Column.full("BIGINT", self.cloud.sides(points))
            elif is_vector(column.kind):
                columns[name] = Column(column.kind, *self.cloud.vectors(points))
            elif column.kind == "TEXT":
                columns[name] = Column(column.kind, np.where(has, draw.choice(WORDS, len(ids)), "").astype("U5"), has)
            else:
                columns[name] = Column(column.kind, np.where(has, draw.integers(0, 100, len(ids)), 0), has)
        return State(columns)

    # What is done.

    def apply(self, step: Step) -> None:
        """Does it and looks at what it left."""
        self.note(step.words)
        step.act(self.plain)
        self.observe(step, is_certain=True)

    def apply_elsewhere(self, step: Step) -> None:
        """Does it in another process, on the same folder."""
        self.note(f"another process: {step.words}")
        Sagitta(str(self.data)).ok("-c", step.sql)
        # What others do to indexes is seen within a second.
        time.sleep(INDEXES_KNOWN_SECONDS)
        self.observe(step, is_certain=True)

    def apply_beside(self, step: Step, look: Callable[[], None]) -> None:
        """Does it while somebody looks at the versions that are there."""
        self.note(f"beside searches: {step.words}")
        before, self.indexes = self.indexes, {**self.indexes, **(step.indexes or {})}
        thread, outcome = self.started(step)
        while thread.is_alive():
            look()
        self.indexes = before
        if "error" in outcome:
            raise outcome["error"]
        self.observe(step, is_certain=True)

    def apply_and_kill(self, step: Step, seconds: float) -> None:
        """Kills the server after so long, and looks whether the step was done."""
        self.note(f"kill -9 {seconds:.3f} s into: {step.words}")
        thread, outcome = self.started(step)
        time.sleep(seconds)
        if "error" in outcome:
            raise outcome["error"]
        self.stop(is_killed=True)
        thread.join(STATEMENT_SECONDS_MAX)
        assert not thread.is_alive(), "the client waits for a server that is gone"
        self.start()
        self.figures["kills"] += 1
        is_done = "is_done" in outcome
        # What the driver holds of the dead server is let go of here: it complains.
        outcome.clear()
        gc.collect()
        self.observe(step, is_certain=is_done)

    def started(self, step: Step) -> tuple[threading.Thread, dict]:
        """A step under way by a client of its own, and what comes of it."""
        server, outcome = self.server, {}

        def work():
            try:
                connection = Connection(server, self.journal)
                step.act(connection)
                outcome["is_done"] = True
                connection.close()
            except Exception as error:
                outcome["error"] = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread, outcome

    def note(self, words: str) -> None:
        self.words.append(words if len(words) < 400 else words[:400] + " …")
        self.journal.write(f"-- {len(self.words)}: {words[:2000]}\n")

    def observe(self, step: Step, is_certain: bool) -> None:
        """Takes the versions that came, and compares the newest with the model in full."""
        before, after = self.version, step.after
        new = self.plain.rows(f"SELECT version, committed_at FROM table_history('t') WHERE version > {before} ORDER BY version")
        assert [row["version"] for row in new] == list(range(before + 1, before + 1 + len(new))), new
        if after is not None:
            assert len(new) <= 1, f"one change made {len(new)} versions"
            assert new or not is_certain or (difference(self.state, after) is None), "a change made no version"
        for row in new:
            self.states[row["version"]] = self.state if after is None else after
            self.times[row["version"]] = row["committed_at"].replace(tzinfo=datetime.timezone.utc)
        self.states = {version: state for version, state in self.states.items() if version not in step.versions_gone}
        self.check_rows("t", self.state)
        self.observe_names(step, is_certain)
        self.observe_indexes()

    def observe_names(self, step: Step, is_certain: bool) -> None:
        """Takes the tags and indexes that there are now."""
        listed = {row["index_name"] for row in self.plain.rows("SELECT index_name FROM system.indexes")}
        outcomes = [self.indexes if step.indexes is None else step.indexes, *([] if is_certain else [self.indexes])]
        # One whose column is gone is not listed; RESTORE brings it back.
        there = {column.origin for column in self.state.columns.values()}
        shown = [{name for name, index in indexes.items() if index.origin in there} for indexes in outcomes]
        assert listed in shown, f"indexes {listed}, expected {shown}"
        self.indexes = outcomes[shown.index(listed)]
        found = {
            tag: row["version"]
            for row in self.plain.rows("SELECT version, tags FROM table_history('t') WHERE cardinality(tags) > 0")
            for tag in row["tags"]
        }
        if step.tags is not None and (is_certain or found == step.tags):
            self.tags = step.tags
        assert found == self.tags, f"tags {found}, expected {self.tags}"

    def observe_indexes(self) -> None:
        """What each index covers adds up, and no file is damaged."""
        self.known = self.plain.rows("SELECT index_name, rows_covered, rows_uncovered, problems FROM system.indexes")
        for index in self.known:
            assert not index["problems"], index
            assert index["rows_covered"] + index["rows_uncovered"] == len(self.state), f"{index} of {len(self.state)} rows"

    def check_rows(self, table: str, state: State) -> None:
        found = of_arrow(self.plain.table(f"SELECT * FROM {table}"), state, self.element)
        problem = difference(state, found)
        assert problem is None, f"{table}: {problem}"
