"""What a database holds that survived a power loss, read in full by new processes, and whether that is what it must hold."""

import dataclasses
import pathlib

from conftest import Sagitta
from power.workload import World
from test_kill import difference

OWN_SCHEMAS = ("information_schema", "system")
# Written to each database after it was read: one that cannot be written any more has not survived.
PROBE, PROBE_KEY = "written_afterwards", -1


@dataclasses.dataclass
class Expected:
    """What a database must hold, the names that statements gave files and did not come to their end, and the statement
    that is in flight.
    """

    world: World
    leftovers: frozenset[str] = frozenset()
    in_flight: str = ""


@dataclasses.dataclass
class Found:
    """The schemas, the relations, and of each table what `difference` compares, and the answers of CHECK TABLE (`check`),
    of a look at a row `written` afterwards, and, if the check was not content, of one after a VACUUM (`vacuumed`).
    """

    schemas: frozenset[str] = frozenset()
    relations: frozenset[str] = frozenset()
    tables: dict[str, dict[str, list[dict]]] = dataclasses.field(default_factory=dict)
    error: str | None = None


def find(folder: pathlib.Path, expected: list[Expected]) -> Found:
    """Reads everything. What is there in all cases is read by the first process, what else there is by another."""
    sagitta = Sagitta(str(folder))
    names = set.intersection(*(set(one.world.tables) for one in expected))
    tags = {name: set.intersection(*(set(one.world.tables[name].tags) for one in expected)) for name in names}
    try:
        answers = ask(sagitta, {**names_queries(), **reads(tags), **writes(names)})
        relations = {qualified(row) for row in answers["relations"]}
        rest = {name: tags_in(answers, name) - tags.get(name, set()) for name in names}
        others = {qualified(row) for row in answers["relations"] if row["table_type"] == "BASE TABLE"} - names
        if others:
            answers |= ask(sagitta, reads({name: set() for name in others}))
            rest |= {name: tags_in(answers, name) for name in others}
        if any(rest.values()):
            queries = {f"{name}|tag {tag}": tag_query(name, tag) for name, some in rest.items() for tag in some}
            answers |= ask(sagitta, queries)
        for name in names | others:
            if any(row["status"] != "ok" for row in answers[f"{name}|check"]):
                answers |= ask(sagitta, {f"{name}|vacuum": f"VACUUM {name}", f"{name}|vacuumed": f"CHECK TABLE {name}"})
    except AssertionError as error:
        said = [line for line in map(str.strip, str(error).splitlines()) if line.startswith("error:")]
        return Found(error="\n".join(said) or str(error))
    tables: dict[str, dict[str, list[dict]]] = {}
    for label, rows in answers.items():
        name, is_of_table, part = label.partition("|")
        if is_of_table:
            tables.setdefault(name, {})[part] = rows
    schemas = frozenset(row["schema_name"] for row in answers["schemas"])
    return Found(schemas, frozenset(relations), tables)


def differs(found: Found, expected: Expected) -> str | None:
    """The first thing in which a database differs from what it must hold, in words."""
    world = expected.world
    if found.error:
        return found.error
    if found.schemas != world.schemas:
        return f"schemas {sorted(found.schemas)}, expected {sorted(world.schemas)}"
    if found.relations != world.views | set(world.tables):
        return f"relations {sorted(found.relations)}, expected {sorted(world.views | set(world.tables))}"
    for name, state in world.tables.items():
        answers = found.tables[name]
        if problem := difference(state, answers):
            return f"{name}: {problem}"
        if wrong := check_finds(answers, name, expected):
            return f"{name}: CHECK TABLE finds {wrong}"
        if answers.get("written", [{"rows": 1}]) != [{"rows": 1}]:
            return f"{name}: a row written afterwards is there {answers['written']} times"
    return None


def check_finds(answers: dict[str, list[dict]], name: str, expected: Expected) -> list[dict]:
    """What CHECK TABLE finds, but for what may be: files that no version names, whose checksums were not written yet; after
    VACUUM, versions some of whose files it removed, and which the next VACUUM removes.
    """
    rows = answers["check"]
    if expected.in_flight == f"VACUUM {name}":
        rows = answers.get("vacuumed", [])
    unverified = {row["file"] for row in rows if row["status"] == "unverified"}
    left = {file for file in unverified if any(path.endswith("/" + file) for path in expected.leftovers)}
    return [row for row in rows if row["status"] != "ok" and row["file"] not in left]


def ask(sagitta: Sagitta, queries: dict[str, str]) -> dict[str, list[dict]]:
    """The answers by label, from one process. A query may be several statements: they share an answer."""
    found: dict[str, list[dict]] = {}
    rows: list[dict] = []
    for row in sagitta.sql(*(f"SELECT '{label}' AS what_follows; {query}" for label, query in queries.items())):
        if "what_follows" in row:
            rows = found.setdefault(row["what_follows"], [])
        else:
            rows.append(row)
    return found


def names_queries() -> dict[str, str]:
    others = "NOT IN (" + ", ".join(f"'{name}'" for name in OWN_SCHEMAS) + ")"
    columns = "table_schema, table_name, table_type"
    return {
        "schemas": f"SELECT schema_name FROM information_schema.schemata WHERE schema_name {others}",
        "relations": f"SELECT {columns} FROM information_schema.tables WHERE table_schema {others}",
    }


def reads(tables: dict[str, set[str]]) -> dict[str, str]:
    """Queries for the tables, and for these tags of each."""
    queries = {}
    for name, tags in tables.items():
        schema, table = f"public.{name}".split(".")[-2:]
        where = f"table_schema = '{schema}' AND table_name = '{table}'"
        queries |= {
            f"{name}|rows": f"SELECT * FROM {name}",
            f"{name}|columns": f"SELECT column_name FROM information_schema.columns WHERE {where}",
            f"{name}|tags": f"SELECT array_to_string(tags, ' ') AS tags FROM table_history('{name}')",
            **{f"{name}|tag {tag}": tag_query(name, tag) for tag in sorted(tags)},
            f"{name}|check": f"CHECK TABLE {name}",
        }
    return queries


def tag_query(name: str, tag: str) -> str:
    return f"SELECT * FROM {name} FOR VERSION AS OF '{tag}'"


def writes(tables: set[str]) -> dict[str, str]:
    """What is written to the tables and to a new one, each with the number of rows that it left."""
    created = f"CREATE TABLE {PROBE} (id BIGINT PRIMARY KEY)"
    queries = {"probe": f"{created}; INSERT INTO {PROBE} VALUES (1)"}
    for name in tables:
        counted = f"SELECT count(*) AS rows FROM {name} WHERE id = {PROBE_KEY}"
        queries[f"{name}|written"] = f"INSERT INTO {name} (id) VALUES ({PROBE_KEY}); {counted}"
    return queries


def qualified(row: dict) -> str:
    return row["table_name"] if row["table_schema"] == "public" else f"{row['table_schema']}.{row['table_name']}"


def tags_in(answers: dict[str, list[dict]], name: str) -> set[str]:
    return {tag for row in answers[f"{name}|tags"] for tag in (row["tags"] or "").split()}
