"""What a table must hold after each of a list of statements: a model in plain Python, for tests that kill the writer.

A statement is made together with the state that it leaves. Values are such that they come back from JSON as they were.
"""

import copy
import dataclasses
import pathlib
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq

TABLE = "accounts"
KINDS = ("insert", "upsert", "update", "delete", "merge", "alter", "tag", "restore", "optimize", "vacuum", "copy", "import")
COLUMNS = {"id": "BIGINT PRIMARY KEY", "n": "INT", "note": "TEXT", "emb": "VECTOR(4)"}
# What a statement answers ends in one such line: the confirmation, or the footer of a table.
ANSWER = re.compile(r"^(?:([A-Z][A-Z ]*?)(?: (\d+))?|\(\d+ rows?\))$")
COLUMNS_MAX = 8
ROWS_MAX = 2000
FILE_ROWS = 800
ARROW = {"BIGINT PRIMARY KEY": pa.int64(), "INT": pa.int32(), "TEXT": pa.string(), "VECTOR(4)": pa.list_(pa.float32(), 4)}


@dataclasses.dataclass
class State:
    """Columns with their types, rows by key, and what each tag names."""

    columns: dict[str, str] = dataclasses.field(default_factory=lambda: dict(COLUMNS))
    rows: dict[int, dict] = dataclasses.field(default_factory=dict)
    tags: dict[str, tuple[dict, dict]] = dataclasses.field(default_factory=dict)

    def copy(self) -> "State":
        return State(dict(self.columns), {key: dict(row) for key, row in self.rows.items()}, dict(self.tags))


@dataclasses.dataclass
class Statement:
    """SQL, how many rows it must say it wrote (None: it need not), and what is there afterwards."""

    kind: str
    sql: str
    count: int | None
    after: State
    source: pathlib.Path | None = None


def quoted(value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list):
        return "'[" + ", ".join(map(repr, value)) + "]'"
    return repr(value)


class Ledger:
    """Makes statements one after another; `state` is what the last one leaves."""

    def __init__(self, seed: int, folder: pathlib.Path, table: str = TABLE):
        self.random = random.Random(seed)
        self.table = table
        self.folder = folder
        self.state = State()
        self.numbers = 0

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def value(self, column: str, type_name: str):
        choose = self.random
        if choose.random() < 0.1:
            return None
        if type_name == "INT":
            return choose.randrange(100)
        if type_name == "TEXT":
            return f"{column} {self.number()} " + choose.choice(["", "it's", "ü", "\\n", "%"])
        return [choose.randrange(-8, 9) * 0.25 for _ in range(4)]

    def row(self, key: int) -> dict:
        columns = list(self.state.columns.items())[1:]
        return {"id": key, **{column: self.value(column, type_name) for column, type_name in columns}}

    def keys(self, count: int) -> list[int]:
        """Keys of rows that are there, at most `count`."""
        there = sorted(self.state.rows)
        return self.random.sample(there, min(count, len(there)))

    def free_keys(self, count: int) -> list[int]:
        start = max(self.state.rows, default=0) + 1
        return self.random.sample(range(start, start + 3 * count), count)

    def make(self, kind: str) -> Statement:
        """A statement of a kind. The ledger goes on from what it leaves."""
        statement = getattr(self, "copy" if kind == "import" else kind)()
        self.state = statement.after
        return dataclasses.replace(statement, kind=kind)

    def changed(self) -> State:
        return self.state.copy()

    def values(self, rows: list[dict]) -> str:
        names = ", ".join(self.state.columns)
        return f"({names}) VALUES " + ", ".join(f"({', '.join(quoted(row[name]) for name in self.state.columns)})" for row in rows)

    def insert(self) -> Statement:
        rows = [self.row(key) for key in self.free_keys(self.random.choice([1, 1, 3, 20, 200]))]
        after = self.changed()
        after.rows.update({row["id"]: row for row in rows})
        return Statement("insert", f"INSERT INTO {self.table} {self.values(rows)}", len(rows), after)

    def upsert(self) -> Statement:
        rows = [self.row(key) for key in self.keys(self.random.randrange(1, 20)) + self.free_keys(self.random.randrange(1, 5))]
        after = self.changed()
        for row in rows:
            old = after.rows.get(row["id"])
            after.rows[row["id"]] = row if old is None else {**old, "n": row["n"], "note": row["note"]}
        sql = f"INSERT INTO {self.table} {self.values(rows)} ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = excluded.note"
        return Statement("upsert", sql, len(rows), after)

    def update(self) -> Statement:
        modulus = self.random.choice([1, 3, 50])
        rest = self.random.randrange(modulus)
        note = f"update {self.number()}"
        after, count = self.changed(), 0
        for key, row in after.rows.items():
            if key % modulus == rest:
                count += 1
                row["note"] = note
                row["n"] = None if row["n"] is None else row["n"] + 1
        sql = f"UPDATE {self.table} SET note = {quoted(note)}, n = n + 1 WHERE id % {modulus} = {rest}"
        return Statement("update", sql, count, after)

    def delete(self) -> Statement:
        after = self.changed()
        if len(after.rows) > ROWS_MAX:
            bound = sorted(after.rows)[len(after.rows) // 2]
            gone = [key for key in after.rows if key < bound]
            sql = f"DELETE FROM {self.table} WHERE id < {bound}"
        else:
            gone = self.keys(self.random.choice([1, 5, 50])) or [-1]
            sql = f"DELETE FROM {self.table} WHERE id IN ({', '.join(map(str, gone))})"
        count = sum(after.rows.pop(key, None) is not None for key in gone)
        return Statement("delete", sql, count, after)

    def merge(self) -> Statement:
        source = [(key, self.random.randrange(100)) for key in self.keys(20) + self.free_keys(5)]
        after, count = self.changed(), len(source)
        for key, n in source:
            if key not in after.rows:
                after.rows[key] = {**dict.fromkeys(after.columns), "id": key, "n": n, "note": "merged"}
            elif n < 30:
                del after.rows[key]
            else:
                after.rows[key]["n"] = n
        # Columns that the branch does not name are NULL: none of them has a default.
        sql = (
            f"MERGE INTO {self.table} USING (VALUES {', '.join(f'({key}, {n})' for key, n in source)}) AS s(k, x) ON {self.table}.id = s.k"
            " WHEN MATCHED AND s.x < 30 THEN DELETE WHEN MATCHED THEN UPDATE SET n = s.x"
            " WHEN NOT MATCHED THEN INSERT (id, n, note) VALUES (s.k, s.x, 'merged')"
        )
        return Statement("merge", sql, count, after)

    def alter(self) -> Statement:
        after = self.changed()
        added = [column for column in after.columns if column not in COLUMNS]
        if added and (len(after.columns) >= COLUMNS_MAX or self.random.random() < 0.3):
            column = self.random.choice(added)
            del after.columns[column]
            for row in after.rows.values():
                del row[column]
            return Statement("alter", f"ALTER TABLE {self.table} DROP COLUMN {column}", None, after)
        if added and self.random.random() < 0.3:
            old, new = self.random.choice(added), f"c{self.number()}"
            after.columns = {new if column == old else column: type_name for column, type_name in after.columns.items()}
            for row in after.rows.values():
                row[new] = row.pop(old)
            return Statement("alter", f"ALTER TABLE {self.table} RENAME COLUMN {old} TO {new}", None, after)
        column, type_name = f"c{self.number()}", self.random.choice(["INT", "TEXT", "VECTOR(4)"])
        after.columns[column] = type_name
        for row in after.rows.values():
            row[column] = None
        return Statement("alter", f"ALTER TABLE {self.table} ADD COLUMN {column} {type_name}", None, after)

    def tag(self) -> Statement:
        after = self.changed()
        if len(after.tags) >= 3:
            tag = self.random.choice(sorted(after.tags))
            del after.tags[tag]
            return Statement("tag", f"DROP TAG {tag} ON {self.table}", None, after)
        tag = f"t{self.number()}"
        kept = self.state.copy()
        after.tags[tag] = (kept.columns, kept.rows)
        return Statement("tag", f"CREATE TAG {tag} ON {self.table}", None, after)

    def restore(self) -> Statement:
        if not self.state.tags:
            return self.tag()
        tag = self.random.choice(sorted(self.state.tags))
        after = self.changed()
        columns, rows = copy.deepcopy(self.state.tags[tag])
        after.columns, after.rows = columns, rows
        return Statement("restore", f"RESTORE TABLE {self.table} TO TAG '{tag}'", None, after)

    def optimize(self) -> Statement:
        return Statement("optimize", f"OPTIMIZE {self.table}", None, self.changed())

    def vacuum(self) -> Statement:
        return Statement("vacuum", f"VACUUM {self.table}", None, self.changed())

    def copy(self) -> Statement:
        rows = [self.row(key) for key in self.free_keys(FILE_ROWS)]
        fields = [pa.field(column, ARROW[type_name]) for column, type_name in self.state.columns.items()]
        path = self.folder / f"{self.table}{self.number()}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), path)
        after = self.changed()
        after.rows.update({row["id"]: row for row in rows})
        return Statement("copy", f"COPY {self.table} FROM '{path}'", len(rows), after, path)


def rows_differ(expected: dict[int, dict], found: list[dict]) -> str | None:
    """The first thing in which rows differ from those expected, in words."""
    by_key = {row["id"]: row for row in found}
    if len(by_key) != len(found):
        keys = [row["id"] for row in found]
        return f"keys that are there twice: {sorted({key for key in keys if keys.count(key) > 1})[:10]}"
    if lost := sorted(set(expected) - set(by_key)):
        return f"{len(lost)} rows lost: {lost[:10]}"
    if risen := sorted(set(by_key) - set(expected)):
        return f"{len(risen)} rows that must not be there: {risen[:10]}"
    for key, row in by_key.items():
        if row != expected[key]:
            return f"row {key} is {row}, expected {expected[key]}"
    return None


def creation(table: str = TABLE) -> str:
    """The statement that makes the table."""
    columns = ", ".join(f"{column} {type_name}" for column, type_name in COLUMNS.items())
    return f"CREATE TABLE {table} ({columns})"
