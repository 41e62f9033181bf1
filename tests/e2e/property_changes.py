"""What is done to the table under test: random statements and foreign commits, each with the state that it leaves."""

import dataclasses
import datetime
import time
from collections.abc import Callable

import lance
import numpy as np
import pyarrow as pa
from property_run import Connection, Index, Run, Step
from vector_model import CLASSES, WORDS, Column, Predicate, State, arrow_table, is_vector, literal

ROWS_FEW, ROWS_MANY = 4_000, 16_000
# A build begins when so many rows have no segment.
UNCOVERED_ROWS_MIN = 4_096
BUILD_SECONDS_MAX = 120
INDEXES_MAX = 2
COLUMNS_MAX = 8
# Of steps that are one statement, so many are done by another process.
ELSEWHERE_SHARE = 0.1
# So many steps are done while searches run.
BESIDE_SHARE = 0.3
METHODS = {
    "graph": ["", "WITH (m = 24, ef_construction = 80)", "WITH (bits = 8)"],
    "hnsw": ["", "WITH (m = 16, ef_construction = 100)"],
    "ivf": ["", "WITH (lists = 30)", "WITH (bits = 4)"],
    "ivf_flat": ["", "WITH (lists = 50)"],
    "ivf_sq8": ["", "WITH (lists = 20)"],
    "ivf_sq4": [""],
    "ivf_pq": ["", "WITH (bits = 4, spill = on)"],
    "scann": [""],
    "flat": ["", "WITH (bits = 7)"],
    "auto": [""],
}
METHODS_OF_BITS = {"graph": [""], "ivf": ["", "WITH (lists = 30)"], "ivf_flat": [""], "auto": [""]}
# Kinds of steps, and how often each is done beside the others.
WEIGHTS = {
    "insert_few": 4,
    "insert_many": 5,
    "delete": 6,
    "update_scalars": 4,
    "update_vectors": 4,
    "upsert": 4,
    "merge": 3,
    "empty": 0.3,
    "optimize": 5,
    "vacuum": 2,
    "tag": 3,
    "drop_tag": 1,
    "restore": 3,
    "add_column": 1.5,
    "drop_column": 1,
    "rename_column": 1,
    "add_vectors": 0.7,
    "fill_vectors": 1.5,
    "create_index": 6,
    "drop_index": 1.5,
    "reindex": 3,
    "insert_and_wait": 2,
    "foreign_append": 3,
    "foreign_delete": 3,
    "foreign_update": 2,
    "foreign_upsert": 1.5,
    "foreign_compaction": 3,
    "foreign_cleanup": 0.2,
    "foreign_index": 0.5,
    "kill": 3,
    "kill_build": 1,
}
# What a server is killed in.
KILLED = ["insert_many", "delete", "update_scalars", "update_vectors", "upsert", "merge", "optimize", "vacuum", "restore"]
KILLED += ["create_index", "create_index", "reindex"]


class Changes:
    """Makes steps of a run."""

    def __init__(self, run: Run):
        self.run = run
        self.random = run.random

    def take(self, look: Callable[[bool], None]) -> None:
        """Does one step of a random kind. `look` looks at versions meanwhile, at the newest one too if that is safe."""
        rows, weights = len(self.run.state), dict(WEIGHTS)
        if not self.run.indexes:
            weights["create_index"] *= 6
        if rows < ROWS_FEW:
            weights["insert_many"] *= 10
        if rows > ROWS_MANY:
            weights["delete"] *= 4
        while True:
            (kind,) = self.random.choices(list(weights), list(weights.values()))
            if self.do(kind, look):
                self.run.figures[kind] += 1
                return

    def do(self, kind: str, look: Callable[[bool], None]) -> bool:
        """Does a step of a kind if there can be one now, in one of several ways."""
        if kind in ("kill", "kill_build"):
            return getattr(self, kind)()
        step, way = getattr(self, kind)(), self.random.random()
        if step is None:
            return False
        if step.sql and way < ELSEWHERE_SHARE:
            self.run.apply_elsewhere(step)
            self.run.figures["elsewhere"] += 1
        elif not step.versions_gone and way < ELSEWHERE_SHARE + BESIDE_SHARE:
            # The newest version is another one from some moment on, unless the rows stay.
            self.run.apply_beside(step, lambda: look(step.after is None))
            self.run.figures["beside"] += 1
        else:
            self.run.apply(step)
        return True

    def kill(self) -> bool:
        step = getattr(self, self.random.choice(KILLED))()
        if step is None:
            return False
        self.run.apply_and_kill(step, self.random.random() ** 2 * 0.6)
        return True

    def kill_build(self) -> bool:
        """While the server builds by itself what rows that came lack."""
        if not self.run.indexes:
            return False
        step = self.insert(self.random.randrange(UNCOVERED_ROWS_MIN, 6_000))
        self.run.apply(step)
        time.sleep(0.9 + self.random.random())
        self.run.apply_and_kill(Step("nothing", lambda on: on.table("SELECT 1")), 0)
        return True

    def sql(self, sql: str, after: State | None = None, **others) -> Step:
        return Step(sql, lambda on: on.table(sql), after, sql=sql, **others)

    # Rows of ours.

    def condition(self) -> Predicate:
        """One that keeps a part of the rows, never many more than half."""
        state, draw = self.run.state, self.random
        kind = draw.choice(["modulo", "side", "a", "ids", "word", "range"])
        if kind == "modulo":
            modulus = draw.choice([2, 3, 10, 100])
            rest = draw.randrange(modulus)
            return Predicate(kind, f"id % {modulus} = {rest}", lambda s: s.ids % modulus == rest)
        if kind == "side":
            bound = int(np.quantile(state.columns["side"].values, draw.choice([0.02, 0.2, 0.5]))) if len(state) else 0
            return Predicate(kind, f"side < {bound}", lambda s: s.columns["side"].has & (s.columns["side"].values < bound))
        if kind == "a":
            value = draw.randrange(100)
            return Predicate(kind, f"a = {value}", lambda s: s.columns["a"].has & (s.columns["a"].values == value))
        if kind == "word":
            word = draw.choice(WORDS)
            return Predicate(kind, f"word = '{word}'", lambda s: s.columns["word"].has & (s.columns["word"].values == word))
        if kind == "ids":
            ids = draw.sample(state.ids.tolist(), min(len(state), draw.choice([1, 7, 60])))
            return Predicate(kind, f"id IN ({', '.join(map(str, ids or [-1]))})", lambda s: np.isin(s.ids, ids))
        first = int(draw.choice(state.ids)) if len(state) else 0
        last = first + draw.choice([10, 500, 3_000])
        return Predicate(kind, f"id BETWEEN {first} AND {last}", lambda s: (s.ids >= first) & (s.ids <= last))

    def insert(self, count: int) -> Step:
        rows = self.run.fresh(count)
        return Step(f"insert {count} rows", lambda on: on.ingest("t", self.run.arrow(rows), "append"), self.run.state.followed_by(rows))

    def insert_many(self) -> Step:
        rows = self.run.fresh(self.random.randrange(200, 5_000))
        after = self.run.state.followed_by(rows)
        if self.random.random() < 0.5:
            return self.insert(len(rows))
        names = ", ".join(rows.columns)
        return self.from_incoming(rows, f"INSERT INTO t ({names}) SELECT {names} FROM incoming", after)

    def insert_few(self) -> Step:
        rows = self.run.fresh(self.random.choice([1, 3, 40]))
        texts = [[self.value(column, row) for column in rows.columns.values()] for row in range(len(rows))]
        values = ", ".join(f"({', '.join(row)})" for row in texts)
        return self.sql(f"INSERT INTO t ({', '.join(rows.columns)}) VALUES {values}", self.run.state.followed_by(rows))

    def value(self, column: Column, row: int) -> str:
        if not column.has[row]:
            return "NULL"
        if is_vector(column.kind):
            return f"'{literal(self.run.element, column.values[row])}'"
        return f"'{column.values[row]}'" if column.kind == "TEXT" else str(column.values[row])

    def from_incoming(self, rows: State, sql: str, after: State) -> Step:
        """A statement that reads rows which are put into another table before."""

        def act(on: Connection) -> None:
            on.ingest("incoming", self.run.arrow(rows), "replace")
            on.table(sql)

        return Step(f"with {len(rows)} rows in incoming: {sql}", act, after)

    def delete(self) -> Step:
        where = self.condition()
        return self.sql(f"DELETE FROM t WHERE {where.sql}", self.run.state.taken(~where.keeps(self.run.state)))

    def empty(self) -> Step:
        return self.sql("DELETE FROM t", self.run.state.taken(np.zeros(len(self.run.state), bool)))

    def update_scalars(self) -> Step:
        where, state = self.condition(), self.run.state
        rows, number = where.keeps(state), self.random.randrange(100)
        if self.random.random() < 0.3:
            after = state.having(a=state.columns["a"].replaced(rows, 0, False))
            return self.sql(f"UPDATE t SET a = NULL WHERE {where.sql}", after)
        word = self.random.choice(WORDS)
        after = state.having(a=state.columns["a"].replaced(rows, number), word=state.columns["word"].replaced(rows, word))
        return self.sql(f"UPDATE t SET a = {number}, word = '{word}' WHERE {where.sql}", after)

    def update_vectors(self) -> Step | None:
        state, column = self.run.state, self.random.choice(self.run.state.vector_columns())
        if len(state) == 0:
            return None
        ids = np.array(self.random.sample(state.ids.tolist(), min(len(state), self.random.choice([1, 20, 800, 3_000]))))
        if len(ids) > 20:
            rows = self.run.fresh(0, ids)
            sql = f"UPDATE t SET {column} = s.{column}, side = s.side FROM incoming s WHERE t.id = s.id"
            return self.from_incoming(rows, sql, state.changed(rows, [column, "side"]))
        where = f"id IN ({', '.join(map(str, ids))})"
        at = state.rows_of(ids)
        if self.random.random() < 0.3:
            after = state.having(**{column: state.columns[column].replaced(at, 0, False)})
            return self.sql(f"UPDATE t SET {column} = NULL WHERE {where}", after)
        vector = self.run.cloud.encoded(self.run.cloud.points(1))[0]
        after = state.having(**{column: state.columns[column].replaced(at, vector)})
        return self.sql(f"UPDATE t SET {column} = '{literal(self.run.element, vector)}' WHERE {where}", after)

    def known_and_new(self) -> State:
        """Rows some of whose ids are there."""
        state = self.run.state
        known = self.random.sample(state.ids.tolist(), min(len(state), self.random.choice([1, 30, 900])))
        new = self.run.fresh(self.random.choice([1, 30, 900])).ids
        return self.run.fresh(0, self.run.cloud.random.permutation(np.concatenate([np.array(known, np.int64), new])))

    def upsert(self) -> Step:
        state, rows = self.run.state, self.known_and_new()
        is_new = state.rows_of(rows.ids) < 0
        names = self.random.choice([[], ["a", "word"], ["side", *state.vector_columns()], list(state.columns)[1:]])
        do = "UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in names) if names else "NOTHING"
        columns = ", ".join(rows.columns)
        sql = f"INSERT INTO t ({columns}) SELECT {columns} FROM incoming ON CONFLICT (id) DO {do}"
        return self.from_incoming(rows, sql, state.changed(rows, names).followed_by(rows.taken(is_new)))

    def merge(self) -> Step:
        state, rows = self.run.state, self.known_and_new()
        is_new = state.rows_of(rows.ids) < 0
        is_deleting = rows.columns["a"].has & (rows.columns["a"].values < 30)
        changed = [*state.vector_columns(), "side"]
        after = state.changed(rows.taken(~is_deleting), changed)
        after = after.taken(~np.isin(after.ids, rows.ids[is_deleting])).followed_by(rows.taken(is_new))
        names = ", ".join(rows.columns)
        sql = (
            "MERGE INTO t USING incoming s ON t.id = s.id WHEN MATCHED AND s.a < 30 THEN DELETE"
            f" WHEN MATCHED THEN UPDATE SET {', '.join(f'{name} = s.{name}' for name in changed)}"
            f" WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({', '.join(f's.{name}' for name in rows.columns)})"
        )
        return self.from_incoming(rows, sql, after)

    # Files, versions and columns.

    def optimize(self) -> Step:
        return self.sql("OPTIMIZE t")

    def vacuum(self) -> Step:
        return self.sql("VACUUM t")

    def tag(self) -> Step:
        version, tag = self.random.choice(sorted(self.run.states)), f"tag{self.run.number()}"
        at = f" AS OF VERSION {version}" if version != self.run.version else ""
        return self.sql(f"CREATE TAG {tag} ON t{at}", tags={**self.run.tags, tag: version})

    def drop_tag(self) -> Step | None:
        if not self.run.tags:
            return None
        gone = self.random.choice(sorted(self.run.tags))
        return self.sql(f"DROP TAG {gone} ON t", tags={tag: version for tag, version in self.run.tags.items() if tag != gone})

    def restore(self) -> Step | None:
        versions = [version for version, state in self.run.states.items() if len(state)]
        version = self.random.choice(versions[-20:])
        tags = [tag for tag, tagged in self.run.tags.items() if tagged == version]
        to = f"TAG '{tags[0]}'" if tags else f"VERSION {version}"
        return self.sql(f"RESTORE TABLE t TO {to}", self.run.states[version])

    def added(self) -> list[str]:
        return [name for name in self.run.state.columns if name.startswith("n")]

    def add_column(self) -> Step | None:
        if len(self.run.state.columns) >= COLUMNS_MAX:
            return None
        name, value = f"n{self.run.number()}", self.random.choice([None, self.random.randrange(100)])
        default = "" if value is None else f" DEFAULT {value}"
        return self.sql(f"ALTER TABLE t ADD COLUMN {name} BIGINT{default}", self.run.state.with_default(name, value))

    def drop_column(self) -> Step | None:
        """One that was added, or one of vectors if another is left."""
        vectors = self.run.state.vector_columns()
        names = self.added() + (vectors if len(vectors) > 1 else [])
        if not names:
            return None
        name = self.random.choice(names)
        return self.sql(f"ALTER TABLE t DROP COLUMN {name}", self.run.state.without(name))

    def rename_column(self) -> Step:
        old = self.random.choice(self.added() + self.run.state.vector_columns())
        new = f"{'v' if is_vector(self.run.state.columns[old].kind) else 'n'}{self.run.number()}"
        return self.sql(f"ALTER TABLE t RENAME COLUMN {old} TO {new}", self.run.state.renamed(old, new))

    def add_vectors(self) -> Step | None:
        """A second column of vectors, without any."""
        state = self.run.state
        if len(state.vector_columns()) > 1:
            return None
        name = f"v{self.run.number()}"
        values = np.zeros((len(state), self.run.dim), self.run.element.kind)
        column = Column(self.run.vector_kind, values, np.zeros(len(state), bool), name)
        return self.sql(f"ALTER TABLE t ADD COLUMN {name} {self.run.vector_kind}", state.having(**{name: column}))

    def fill_vectors(self) -> Step | None:
        """The vectors of one column into the other, for all rows or some."""
        state = self.run.state
        if len(state.vector_columns()) < 2:
            return None
        source, target = self.random.sample(state.vector_columns(), 2)
        where, rows = "", np.ones(len(state), bool)
        if self.random.random() < 0.5:
            condition = self.condition()
            where, rows = f" WHERE {condition.sql}", condition.keeps(state)
        values, has = state.columns[source].values[rows], state.columns[source].has[rows]
        after = state.having(**{target: state.columns[target].replaced(rows, values, has)})
        return self.sql(f"UPDATE t SET {target} = {source}{where}", after)

    # Indexes.

    def create_index(self) -> Step | None:
        if len(self.run.indexes) >= INDEXES_MAX:
            return None
        methods = METHODS_OF_BITS if self.run.element.is_bit else METHODS
        method = self.random.choice(list(methods))
        # The metric of the run more often than the others: what searches ask for.
        metric = self.run.metrics[0] if self.random.random() < 0.8 or not self.run.indexes else self.random.choice(self.run.metrics)
        column, name = self.random.choice(self.run.state.vector_columns()), f"index{self.run.number()}"
        sql = f"CREATE INDEX {name} ON t USING {method} ({column} {CLASSES[metric]}) {self.random.choice(methods[method])}".strip()
        index = Index(self.run.state.columns[column].origin, method, metric)
        return self.sql(sql, indexes={**self.run.indexes, name: index})

    def drop_index(self) -> Step | None:
        if not self.run.indexes:
            return None
        name = self.random.choice(sorted(self.run.indexes))
        return self.sql(f"DROP INDEX {name} ON t", indexes={other: index for other, index in self.run.indexes.items() if other != name})

    def reindex(self) -> Step | None:
        """One index, or all of those whose columns are there."""
        listed = sorted(index["index_name"] for index in self.run.known)
        if not listed:
            return None
        if set(listed) == set(self.run.indexes) and self.random.random() < 0.3:
            return self.sql("REINDEX TABLE t")
        return self.sql(f"REINDEX INDEX {self.random.choice(listed)} ON t")

    def insert_and_wait(self, count: int = 0) -> Step:
        """Until the server has built what the indexes lack. `count` rows, or a few or many."""
        step = self.insert(count or self.random.choice([50, 4_500]))

        def act(on: Connection) -> None:
            step.act(on)
            until = time.monotonic() + BUILD_SECONDS_MAX
            sql = f"SELECT index_name, rows_uncovered FROM system.indexes WHERE rows_uncovered >= {UNCOVERED_ROWS_MIN}"
            while behind := on.rows(sql):
                assert time.monotonic() < until, f"not built: {behind}"
                time.sleep(0.1)

        return Step(f"{step.words} and wait", act, step.after)

    # Other programs.

    def foreign(self, words: str, act, after: State | None = None) -> Step:
        return Step(f"lance: {words}", lambda _: act(lance.dataset(str(self.run.path))), after)

    def foreign_rows(self, dataset: lance.LanceDataset, rows: State) -> pa.Table:
        return arrow_table(rows, self.run.element, dataset.schema)

    def foreign_append(self) -> Step:
        rows = self.run.fresh(self.random.choice([3, 400, 2_000]))
        after = self.run.state.followed_by(rows)
        act = lambda dataset: lance.write_dataset(self.foreign_rows(dataset, rows), str(self.run.path), mode="append")  # noqa: E731
        return self.foreign(f"append {len(rows)} rows", act, after)

    def foreign_delete(self) -> Step | None:
        where = self.condition()
        keeps = where.keeps(self.run.state)
        if not keeps.any() or keeps.all():
            return None
        return self.foreign(f"delete {where.sql}", lambda dataset: dataset.delete(where.sql), self.run.state.taken(~keeps))

    def foreign_update(self) -> Step | None:
        where, state, number = self.condition(), self.run.state, self.random.randrange(100)
        rows = where.keeps(state)
        if not rows.any():
            return None
        after = state.having(a=state.columns["a"].replaced(rows, number))
        return self.foreign(f"a = {number} where {where.sql}", lambda dataset: dataset.update({"a": str(number)}, where=where.sql), after)

    def foreign_upsert(self) -> Step:
        state, rows = self.run.state, self.known_and_new()
        after = state.changed(rows, list(state.columns)[1:]).followed_by(rows.taken(state.rows_of(rows.ids) < 0))

        def act(dataset: lance.LanceDataset) -> None:
            merge = dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(self.foreign_rows(dataset, rows))

        return self.foreign(f"merge {len(rows)} rows", act, after)

    def foreign_compaction(self) -> Step:
        rows = self.random.choice([3_000, 1 << 20])
        return self.foreign(
            f"compact to {rows} rows a fragment",
            lambda dataset: dataset.optimize.compact_files(target_rows_per_fragment=rows, materialize_deletions_threshold=0.0),
        )

    def foreign_cleanup(self) -> Step:
        """Of all versions but the newest and those that have tags."""
        kept = {self.run.version, *self.run.tags.values()}

        def act(dataset: lance.LanceDataset) -> None:
            dataset.cleanup_old_versions(datetime.timedelta(0), error_if_tagged_old_versions=False)

        step = self.foreign("remove old versions", act)
        return dataclasses.replace(step, versions_gone=frozenset(self.run.states.keys() - kept))

    def foreign_index(self) -> Step | None:
        """Of Lance, which compactions must keep up with."""
        if self.run.figures["foreign_index"]:
            return None
        return self.foreign("an index", lambda dataset: dataset.create_scalar_index("side", "BTREE"))
