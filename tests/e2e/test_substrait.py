"""Substrait plans, as ADBC and other clients send them: written here field by field, as the specification numbers them."""

import struct

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from conftest import Sagitta
from flight_sql import command, field, fields, serving, varint

REFUSED = (flight.FlightError, pa.ArrowException)
READ, FILTER, FETCH, SORT, PROJECT, WRITE = 1, 2, 3, 5, 7, 19
NULLABLE = field(2, 1)
I64, TEXT = field(7, NULLABLE), field(12, NULLABLE)
FLOATS = field(27, field(1, field(10, NULLABLE)) + field(3, 1))


def read(table: list[str], columns: dict[str, bytes]) -> bytes:
    names = b"".join(field(1, name) for name in columns)
    schema = names + field(2, b"".join(field(1, kind) for kind in columns.values()))
    return field(READ, field(2, schema) + field(7, b"".join(field(1, part) for part in table)))


def column(number: int) -> bytes:
    return field(2, field(1, field(2, field(1, number))) + field(4, b""))


def call(function: int, *arguments: bytes) -> bytes:
    return field(3, field(1, function) + b"".join(field(4, field(3, argument)) for argument in arguments))


def number(value: int) -> bytes:
    return field(1, field(7, value))


def vector(*elements: float) -> bytes:
    floats = [varint(10 << 3 | 5) + struct.pack("<f", element) for element in elements]
    return field(1, field(30, b"".join(field(1, element) for element in floats)))


def parameter(kind: bytes) -> bytes:
    return field(14, field(1, kind) + field(2, 0))


def filtered(rel: bytes, condition: bytes) -> bytes:
    return field(FILTER, field(2, rel) + field(3, condition))


def nearest(rel: bytes, distance: bytes, columns: int, k: int) -> bytes:
    """The first column of the k nearest rows."""
    projected = field(PROJECT, field(2, rel) + field(3, distance))
    ordered = field(SORT, field(2, projected) + field(3, field(1, column(columns)) + field(2, 2)))
    emit = field(1, field(2, field(1, bytes([0]))))
    return field(PROJECT, emit + field(2, field(FETCH, field(2, ordered) + field(4, k))))


def plan(rel: bytes, *names: str, functions: tuple[str, ...] = ()) -> bytes:
    declared = b"".join(field(2, field(3, field(2, at) + field(3, name))) for at, name in enumerate(functions))
    root = field(1, rel) + b"".join(field(2, name) for name in names)
    version = field(6, field(2, 85) + field(5, "a test"))
    return version + declared + field(3, field(2, root))


DOCS = read(["docs"], {"id": I64, "body": TEXT, "emb": FLOATS})
IDS = read(["docs"], {"id": I64})
SEARCH = plan(
    nearest(filtered(DOCS, call(0, column(0), number(1))), call(1, column(2), vector(1.0, 0.1)), 3, 2),
    "id",
    functions=("gt:any_any", "l2_distance"),
)


def of_plan(name: str, body: bytes) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(command(name, field(1, field(1, body) + field(2, "0.85.0"))))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("substrait")
    with serving(folder / "data", folder) as server:
        client = server.client()
        client.rows("CREATE TABLE docs (id BIGINT, body TEXT, emb VECTOR(2))")
        client.rows("INSERT INTO docs VALUES (1, 'a', '[1, 0]'), (2, 'b', '[0, 1]'), (3, NULL, '[1, 1]')")
        yield server


@pytest.fixture
def adbc(server):
    with adbc_driver_flightsql.dbapi.connect(server.uri, autocommit=True) as connection:
        yield connection


def test_a_plan_is_run_by_the_driver(adbc):
    with adbc.cursor() as cursor:
        cursor.execute(plan(IDS, "number"))
        table = cursor.fetch_arrow_table()
        assert table.column_names == ["number"] and sorted(table["number"].to_pylist()) == [1, 2, 3]
        cursor.execute(SEARCH)
        assert cursor.fetchall() == [(3,), (2,)]
        cursor.execute("SELECT id FROM docs WHERE id > 1 ORDER BY l2_distance(emb, [1.0, 0.1]) LIMIT 2")
        assert cursor.fetchall() == [(3,), (2,)]


def test_a_plan_has_a_schema_and_is_polled_and_fetched_at_once(server, adbc):
    client = server.client()
    descriptor = of_plan("CommandStatementSubstraitPlan", SEARCH)
    assert client.flight.get_schema(descriptor, client.options).schema.names == ["id"]
    info = client.flight.get_flight_info(descriptor, client.options)
    assert client.get(info.endpoints[0].ticket).read_all().to_pylist() == [{"id": 3}, {"id": 2}]
    assert client.get(flight.Ticket(descriptor.command)).read_all().schema == info.schema
    statement = adbc_driver_manager.AdbcStatement(adbc.adbc_connection)
    try:
        statement.set_options(**{"adbc.flight.sql.substrait.version": "0.85.0", "adbc.flight.sql.rpc.timeout_seconds.query": "60"})
        statement.set_substrait_plan(SEARCH)
        partitions, schema, _ = statement.execute_partitions()
        assert len(partitions) == 1
    finally:
        statement.close()


def test_a_prepared_plan_is_bound(server):
    client = server.client()
    body = plan(nearest(DOCS, call(0, column(2), parameter(FLOATS)), 3, 1), "id", functions=("l2_distance",))
    (answer,) = client.act("CreatePreparedSubstraitPlan", command("ActionCreatePreparedSubstraitPlanRequest", field(1, field(1, body))))
    result = fields(fields(answer)[2][0])
    assert pa.ipc.read_schema(pa.py_buffer(result[2][0])).names == ["id"]
    assert len(pa.ipc.read_schema(pa.py_buffer(result[3][0]))) == 1 and result.get(4, [0]) == [0]
    for query, expected in [((0.9, 0.0), 1), ((0.0, 0.9), 2)]:
        descriptor = flight.FlightDescriptor.for_command(command("CommandPreparedStatementQuery", field(1, result[1][0])))
        values = pa.record_batch([pa.array([list(query)], pa.list_(pa.float32()))], names=["q"])
        writer, reader = client.flight.do_put(descriptor, values.schema, client.options)
        writer.write_batch(values)
        writer.done_writing()
        handle = fields(reader.read().to_pybytes())[1][0]
        writer.close()
        bound = flight.FlightDescriptor.for_command(command("CommandPreparedStatementQuery", field(1, handle)))
        info = client.flight.get_flight_info(bound, client.options)
        assert client.get(info.endpoints[0].ticket).read_all().to_pylist() == [{"id": expected}]


def test_a_plan_is_listed_and_its_moment_is_the_sessions(server):
    client = server.client()
    client.rows("CREATE TABLE then (id BIGINT)")
    (at,) = client.rows("SELECT max(committed_at) AS t FROM table_history('then')")
    client.rows("INSERT INTO then VALUES (1)")
    descriptor = of_plan("CommandStatementSubstraitPlan", plan(read(["public", "then"], {"id": I64}), "id"))

    def count() -> int:
        info = client.flight.get_flight_info(descriptor, client.options)
        return client.get(info.endpoints[0].ticket).read_all().num_rows

    assert count() == 1
    client.rows(f"SET as_of = '{at['t'].isoformat()}Z'")
    assert count() == 0
    client.rows("RESET as_of")
    info = client.flight.get_flight_info(descriptor, client.options)
    texts = [row["query"] if "query" in row else str(row) for row in client.rows("SELECT * FROM system.queries")]
    assert any("Substrait plan of" in text and "by a test" in text for text in texts), texts
    assert info.endpoints


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "one tree"),
        (b"\xff\xff\xff", "Substrait plan"),
        (b"SELECT 1", "Substrait plan"),
        (plan(read(["nothing"], {"id": I64}), "id"), 'no table "nothing"'),
        (plan(read(["docs"], {"wrong": I64}), "wrong"), 'no column "wrong"'),
        (plan(read(["docs"], {"id": TEXT}), "id"), "is a BIGINT"),
        (plan(filtered(IDS, call(0, column(0), number(1))), "id", functions=("no_such_function",)), "no_such_function"),
        (plan(filtered(IDS, call(7, column(0), number(1))), "id"), "function"),
        (plan(filtered(IDS, call(0, column(9), number(1))), "id", functions=("gt",)), "column 9"),
        (plan(field(WRITE, field(4, 1)), "n"), "as SQL"),
        (plan(field(11, b""), "n"), "extension"),
        (plan(field(FETCH, b""), "n"), "input"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(server, body, message):
    client = server.client()
    for attempt in (client.flight.get_flight_info, client.flight.get_schema):
        with pytest.raises(REFUSED, match=message) as caught:
            attempt(of_plan("CommandStatementSubstraitPlan", body), client.options)
        assert "panic" not in str(caught.value).lower() and "nternal" not in str(caught.value), caught.value


def test_nested_plans_end_nobody(server):
    rel = IDS
    for _ in range(20_000):
        rel = field(FETCH, field(2, rel))
    deep = IDS
    for _ in range(44):
        deep = filtered(deep, call(0, column(0), number(0)))
    wide = field(8, b"".join(field(2, IDS) for _ in range(2_000)) + field(3, 6))
    client = server.client()
    for body, message in [(plan(rel, "id"), "recursion"), (plan(wide, "id"), "more than")]:
        with pytest.raises(REFUSED, match=message):
            client.flight.get_flight_info(of_plan("CommandStatementSubstraitPlan", body), client.options)
    info = client.flight.get_flight_info(of_plan("CommandStatementSubstraitPlan", plan(deep, "id", functions=("gt",))), client.options)
    assert client.get(info.endpoints[0].ticket).read_all().num_rows == 3


def test_the_server_says_that_it_reads_plans(adbc):
    info = adbc.adbc_get_info()
    assert info["vendor_substrait"] is True if "vendor_substrait" in info else True
    with adbc.cursor() as cursor:
        cursor.execute(plan(IDS, "id"))
        assert len(cursor.fetchall()) == 3


def test_the_rights_are_those_of_sql(tmp_path):
    local = Sagitta(str(tmp_path / "data"))
    local.ok(
        "-c", "CREATE USER root PASSWORD 'r' ADMIN",
        "-c", "CREATE USER bob PASSWORD 'b'",
        "-c", "CREATE TABLE docs (id BIGINT)",
        "-c", "INSERT INTO docs VALUES (1)",
        "-c", "CREATE SCHEMA open",
        "-c", "CREATE TABLE open.docs (id BIGINT)",
        "-c", "CREATE VIEW open.leak AS SELECT id FROM public.docs",
        "-c", "GRANT READ ON SCHEMA open TO bob",
    )  # fmt: skip
    with serving(tmp_path / "data", tmp_path, "--auth") as server:
        bob = server.client(("bob", "b"))

        def fetched(*table: str) -> pa.Table:
            descriptor = of_plan("CommandStatementSubstraitPlan", plan(read(list(table), {"id": I64}), "id"))
            info = bob.flight.get_flight_info(descriptor, bob.options)
            return bob.get(info.endpoints[0].ticket).read_all()

        assert fetched("open", "docs").num_rows == fetched("sagitta", "open", "docs").num_rows == 0
        for table, message in [(("docs",), "no table"), (("open", "leak"), "no right"), (("x", "open", "docs"), "no catalog x")]:
            with pytest.raises(REFUSED, match=message):
                fetched(*table)
