"""The statements whose history is replayed, and what the database holds after each: every kind of write, on three tables.

Two processes run them. The clock of the first is three days behind, so that the second finds versions that are old
enough for VACUUM.
"""

import dataclasses
import pathlib

from ledger import Ledger, State, creation

ACCOUNTS, ENTRIES, COPIED = "accounts", "s.entries", "copied"
PAST_SECONDS = -3 * 24 * 3600
# Kinds of the ledger, or what is spelled out in `Workload`.
PAST = (
    "schema accounts insert entries entries:insert insert upsert tag copied update delete merge entries:upsert view alter"
    " insert optimize entries:delete alter tag copy delete entries:optimize recopied upsert"
)
TODAY = (
    "insert vacuum upsert restore entries:vacuum update optimize merge drop_view entries:update delete drop_entries"
    " alter vacuum tag copied_again drop_schema truncated insert tag delete restore insert"
)


@dataclasses.dataclass
class World:
    """What a database holds: `schema.name` of all relations, the schemas of its own, and the states of the tables."""

    schemas: frozenset[str] = frozenset({"public"})
    views: frozenset[str] = frozenset()
    tables: dict[str, State] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Step:
    """A statement and what it leaves."""

    sql: str
    after: World


class Workload:
    """Makes the steps of a seed; files to load go to `folder`."""

    def __init__(self, seed: int, folder: pathlib.Path):
        self.world = World()
        self.ledgers = {name: Ledger(seed + at, folder, name) for at, name in enumerate((ACCOUNTS, ENTRIES))}
        self.past = [self.step(kind) for kind in PAST.split()]
        self.today = [self.step(kind) for kind in TODAY.split()]

    @property
    def steps(self) -> list[Step]:
        return self.past + self.today

    def step(self, kind: str) -> Step:
        table, _, ledger_kind = kind.rpartition(":")
        special = getattr(self, f"make_{kind}", None)
        sql = special() if special else self.change({"": ACCOUNTS, "entries": ENTRIES}[table], ledger_kind)
        return Step(sql, self.world)

    def change(self, table: str, kind: str) -> str:
        statement = self.ledgers[table].make(kind)
        self.put(table, statement.after)
        return statement.sql

    def put(self, table: str, state: State) -> None:
        self.world = dataclasses.replace(self.world, tables={**self.world.tables, table: state})

    def make_schema(self) -> str:
        self.world = dataclasses.replace(self.world, schemas=self.world.schemas | {"s"})
        return "CREATE SCHEMA s"

    def make_accounts(self) -> str:
        self.put(ACCOUNTS, State())
        return creation(ACCOUNTS)

    def make_entries(self) -> str:
        self.put(ENTRIES, State())
        return creation(ENTRIES)

    def make_copied(self) -> str:
        rows = self.world.tables[ACCOUNTS].rows
        columns = {"id": "BIGINT", "n": "INT"}
        self.put(COPIED, State(columns, {key: {"id": key, "n": row["n"]} for key, row in rows.items()}))
        return f"CREATE TABLE {COPIED} AS SELECT id, n FROM {ACCOUNTS}"

    def make_recopied(self) -> str:
        return self.make_copied().replace("CREATE", "CREATE OR REPLACE")

    make_copied_again = make_recopied

    def make_view(self) -> str:
        self.world = dataclasses.replace(self.world, views=frozenset({"seen"}))
        return f"CREATE VIEW seen AS SELECT id FROM {ACCOUNTS}"

    def make_drop_view(self) -> str:
        self.world = dataclasses.replace(self.world, views=frozenset())
        return "DROP VIEW seen"

    def make_drop_entries(self) -> str:
        tables = {name: state for name, state in self.world.tables.items() if name != ENTRIES}
        self.world = dataclasses.replace(self.world, tables=tables)
        return f"DROP TABLE {ENTRIES}"

    def make_drop_schema(self) -> str:
        self.world = dataclasses.replace(self.world, schemas=self.world.schemas - {"s"})
        return "DROP SCHEMA s"

    def make_truncated(self) -> str:
        self.put(COPIED, dataclasses.replace(self.world.tables[COPIED], rows={}))
        return f"TRUNCATE TABLE {COPIED}"


def script(steps: list[Step]) -> str:
    return "".join(step.sql + ";\n" for step in steps)
