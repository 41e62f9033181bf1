"""The server as Flight SQL clients see it: each rule that real clients rely on is a test."""

import datetime
import re
import threading
import time
import urllib.error
import urllib.request

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from flight_sql import command, field, fields, serving, statement

REFUSED = (flight.FlightError, pa.ArrowException)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flight")
    with serving(folder / "data", folder) as server:
        client = server.client()
        for sql in [
            "CREATE TABLE docs (id BIGINT PRIMARY KEY, body TEXT, emb VECTOR(3))",
            "INSERT INTO docs VALUES (1, 'one', '[1, 0, 0]'), (2, 'two', '[0, 1, 0]'), (3, NULL, '[0, 0, 1]')",
            "CREATE VIEW texts AS SELECT id, body FROM docs WHERE body IS NOT NULL",
            "CREATE SCHEMA other",
            "CREATE TABLE other.docs (a INT)",
        ]:
            client.rows(sql)
        yield server


@pytest.fixture
def adbc(server):
    with adbc_driver_flightsql.dbapi.connect(server.uri, autocommit=True) as connection:
        yield connection


def queries(adbc, sql: str, parameters=None) -> list[tuple]:
    with adbc.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS a, 'x' AS b",
        "SELECT count(*), min(id), max(body) FROM docs",
        "SELECT * FROM docs ORDER BY emb <=> '[1, 1, 0]' LIMIT 2",
        "SELECT id, body FROM texts WHERE id > 100",
        "SELECT emb, arrow_cast(body, 'Dictionary(Int32, Utf8)') AS d, arrow_cast(body, 'Utf8View') AS v FROM docs",
        "EXPLAIN SELECT * FROM docs",
        "SHOW TABLES",
        "SELECT d.id, o.a, o.a AS id, o.a FROM docs d LEFT JOIN other.docs o ON o.a = d.id",
        "SELECT now(), TIMESTAMP '0001-01-01 00:00:00', TIMESTAMPTZ '9999-12-31 23:59:59Z', TIME '12:00:00'",
    ],
)
def test_the_announced_schema_is_that_of_the_rows(server, sql):
    client = server.client()
    info = client.info(sql)
    assert len(info.endpoints) == 1 and info.endpoints[0].locations == []
    reader = client.get(info.endpoints[0].ticket)
    assert reader.schema == info.schema
    assert reader.read_all().schema == info.schema
    assert client.flight.get_schema(statement(sql), client.options).schema.names == info.schema.names


def test_clients_get_types_that_they_read(server):
    sql = "SELECT arrow_cast('a', 'Dictionary(Int32, Utf8)') AS d, arrow_cast('b', 'Utf8View') AS v"
    assert server.client().info(sql).schema.types == [pa.string(), pa.string()]


def test_an_answer_may_have_two_columns_of_one_name(server, adbc):
    table = server.client().get(server.client().info("SELECT 1 AS a, 2 AS a").endpoints[0].ticket).read_all()
    assert table.schema.names == ["a", "a"]
    assert queries(adbc, "SELECT a.id, b.id FROM docs a JOIN docs b ON b.id = a.id + 1 ORDER BY a.id") == [(1, 2), (2, 3)]
    assert queries(adbc, "SELECT $1 AS a, $2 AS a, id FROM docs WHERE id = $1", (1, 7)) == [(1, 7, 1)]


def test_times_keep_their_zone_and_their_years(adbc):
    queries(adbc, "CREATE TABLE moments (at TIMESTAMP, z TIMESTAMPTZ, s TIMESTAMP(0) WITH TIME ZONE, t TIME)")
    queries(adbc, "INSERT INTO moments VALUES ('0001-01-01', '9999-12-31T23:59:59.999999+00:00', '2026-01-01T00:00:00+02:00', '12:00')")
    with adbc.cursor() as cursor:
        cursor.execute("SELECT * FROM moments")
        table = cursor.fetch_arrow_table()
    assert table.schema.types == [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("s", "UTC"), pa.time64("us")]
    (row,) = table.to_pylist()
    assert (row["at"].year, row["z"].year) == (1, 9999)
    assert row["s"] == datetime.datetime(2025, 12, 31, 22, tzinfo=datetime.timezone.utc)
    berlin = datetime.datetime(2026, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=3)))
    assert queries(adbc, "SELECT count(*) FROM moments WHERE s = $1", (berlin,)) == [(1,)]
    assert queries(adbc, "SELECT count(*) FROM moments WHERE at < $1 AND z > $2", (berlin, berlin)) == [(1,)]
    schema = adbc.adbc_get_table_schema("moments")
    assert [field.metadata[b"ARROW:FLIGHT:SQL:TYPE_NAME"].decode() for field in schema] == [
        "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIMESTAMP(0) WITH TIME ZONE", "TIME",
    ]


def test_no_message_is_larger_than_drivers_take(server, adbc):
    """ADBC takes 16 MiB by default, and a batch of the engine may be larger."""
    vectors = np.random.default_rng(7).random((40_000, 256), dtype=np.float32)
    table = pa.table({"id": pa.array(range(40_000)), "emb": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 256)})
    with adbc.cursor() as cursor:
        assert cursor.adbc_ingest("wide", table.to_reader(5_000), mode="create") == 40_000
        cursor.execute("SELECT emb, id FROM wide ORDER BY id")
        back = cursor.fetch_arrow_table()
    assert back.column("id").to_pylist() == list(range(40_000))
    flat = back.column("emb").combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat.reshape(-1, 256), vectors)


def test_a_change_runs_once_however_its_answer_is_fetched(server):
    client = server.client()
    client.rows("CREATE TABLE once (a INT)")
    info = client.info("INSERT INTO once VALUES (1)")
    assert info.schema == pa.schema([])
    ticket = info.endpoints[0].ticket
    for _ in range(3):
        assert client.get(ticket).read_all().num_rows == 0
    client.info("INSERT INTO once VALUES (2)")  # never fetched
    client.flight.get_schema(statement("INSERT INTO once VALUES (3)"), client.options)  # only looked at
    client.prepare("INSERT INTO once VALUES (4)")
    assert [row["a"] for row in client.rows("SELECT a FROM once ORDER BY a")] == [1, 2]


def test_a_ticket_is_redeemed_twice_on_one_snapshot(server):
    client = server.client()
    client.rows("CREATE TABLE pinned (a INT)")
    client.rows("INSERT INTO pinned VALUES (1)")
    ticket = client.info("SELECT a FROM pinned").endpoints[0].ticket
    client.rows("INSERT INTO pinned VALUES (2)")
    for _ in range(2):
        assert client.get(ticket).read_all().column(0).to_pylist() == [1]


def test_prepared_statements_say_what_they_are(server):
    client = server.client()
    query = client.prepare("SELECT id, emb <-> $1 AS d FROM docs WHERE id > $2 ORDER BY d LIMIT 2")
    dataset = pa.ipc.read_schema(pa.py_buffer(query[2][0]))
    parameters = pa.ipc.read_schema(pa.py_buffer(query[3][0]))
    assert dataset.names == ["id", "d"] and query.get(4, [0]) == [0]
    assert parameters.types == [pa.list_(pa.field("item", pa.float32()), 3), pa.int64()]
    assert dataset.field("id").metadata[b"ARROW:FLIGHT:SQL:TYPE_NAME"] == b"BIGINT"
    change = client.prepare("INSERT INTO docs (id, emb) VALUES (?, ?)")
    assert 2 not in change and change[4] == [1]
    parameters = pa.ipc.read_schema(pa.py_buffer(change[3][0]))
    assert parameters.types == [pa.int64(), pa.list_(pa.field("item", pa.float32()), 3)]


def test_parameters_are_bound_in_both_spellings(adbc):
    vector = pa.array([[0.0, 1.0, 0.5]], pa.list_(pa.float32(), 3))
    batch = pa.record_batch([vector, pa.array([2])], names=["q", "k"])
    for sql in ["SELECT id FROM docs ORDER BY emb <-> $1 LIMIT $2", "SELECT id FROM docs ORDER BY emb <-> ? LIMIT ?"]:
        assert queries(adbc, sql, batch) == [(2,), (3,)]
    assert queries(adbc, "SELECT id FROM docs WHERE body = ?", ("two",)) == [(2,)]
    dictionary = pa.record_batch([pa.array(["one"]).dictionary_encode()], names=["b"])
    assert queries(adbc, "SELECT id FROM docs WHERE body = ?", dictionary) == [(1,)]
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="both kinds"):
        queries(adbc, "SELECT id FROM docs WHERE body = ? AND id = $1", ("two",))


def test_a_prepared_search_sees_what_was_written_since(server, adbc):
    """It is planned once, and runs on the newest snapshot each time, for values of any kind that fit."""
    with adbc.cursor() as cursor:
        cursor.execute("CREATE TABLE fresh (id BIGINT, n INT, emb VECTOR(2))")
        near = []
        for number in range(12):
            cursor.execute("INSERT INTO fresh VALUES ($1, $2, $3)", pa.record_batch([pa.array([number]), pa.array([number % 3], pa.int32()), pa.array([[float(number), 0.0]], pa.list_(pa.float32(), 2))], names=["a", "b", "c"]))
            sql = "SELECT id FROM fresh WHERE n = $1 ORDER BY emb <-> $2 LIMIT 2"
            for kind in (pa.int32(), pa.int64()):
                values = pa.record_batch([pa.array([number % 3], kind), pa.array([[100.0, 0.0]], pa.list_(pa.float32(), 2))], names=["n", "q"])
                cursor.execute(sql, values)
                near.append([row[0] for row in cursor.fetchall()])
            expected = [other for other in range(number, -1, -1) if other % 3 == number % 3][:2]
            assert near[-2:] == [expected, expected]
        cursor.execute("ALTER TABLE fresh ADD COLUMN later TEXT")
        cursor.execute(sql, values)
        assert [row[0] for row in cursor.fetchall()] == expected


def test_one_prepared_statement_is_bound_again_and_again(server):
    client = server.client()
    client.rows("CREATE TABLE again (id BIGINT, emb VECTOR(2))")
    handle = client.prepare("SELECT id FROM again ORDER BY emb <-> $1 LIMIT 1")[1][0]
    descriptor = flight.FlightDescriptor.for_command(command("CommandPreparedStatementQuery", field(1, handle)))
    handles = set()
    for number in range(6):
        client.rows(f"INSERT INTO again VALUES ({number}, '[{number}, 1]')")
        values = pa.record_batch([pa.array([[float(number), 1.0]], pa.list_(pa.float32(), 2))], names=["q"])
        writer, reader = client.flight.do_put(descriptor, values.schema, client.options)
        writer.write_batch(values)
        writer.done_writing()
        handles.add(fields(reader.read().to_pybytes())[1][0])
        writer.close()
        # Older clients stay with the handle that they were given first.
        info = client.flight.get_flight_info(descriptor, client.options)
        assert client.get(info.endpoints[0].ticket).read_all().column(0).to_pylist() == [number]
    client.act("ClosePreparedStatement", command("ActionClosePreparedStatementRequest", field(1, handle)))
    assert len(handles) == 6 and handle not in handles
    for closed in [handle, *handles]:
        descriptor = flight.FlightDescriptor.for_command(command("CommandPreparedStatementQuery", field(1, closed)))
        with pytest.raises(REFUSED, match="handle is unknown"):
            client.flight.get_flight_info(descriptor, client.options)


def test_many_rows_of_one_insert_are_one_version(adbc):
    with adbc.cursor() as cursor:
        cursor.execute("CREATE TABLE many (id BIGINT PRIMARY KEY, body TEXT)")
        cursor.executemany("INSERT INTO many VALUES ($1, $2)", [(number, f"row {number}") for number in range(500)])
        assert cursor.rowcount == 500
        with pytest.raises(adbc_driver_manager.Error, match="7"):
            cursor.executemany("INSERT INTO many VALUES ($1, $2)", [(1000, "new"), (7, "twice")])
    assert queries(adbc, "SELECT count(*), max(id) FROM many") == [(500, 499)]
    assert queries(adbc, "SELECT count(*) FROM table_history('many') WHERE operation = 'INSERT'") == [(1,)]


@pytest.mark.parametrize(
    ("mode", "before", "expected"),
    [
        ("create", False, 3),
        ("create", True, "already exists"),
        ("append", True, 6),
        ("append", False, "no table"),
        ("replace", True, 3),
        ("replace", False, 3),
        ("create_append", False, 3),
        ("create_append", True, 6),
    ],
)
def test_ingest_in_every_mode(adbc, mode, before, expected):
    table = pa.table({"id": [1, 2, 3], "emb": pa.array([[1, 2], [3, 4], None], pa.list_(pa.float32(), 2))})
    with adbc.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS ingested")
        if before:
            cursor.adbc_ingest("ingested", table, mode="create")
        if isinstance(expected, str):
            with pytest.raises(adbc_driver_manager.ProgrammingError, match=expected):
                cursor.adbc_ingest("ingested", table, mode=mode)
            return
        assert cursor.adbc_ingest("ingested", table, mode=mode) == 3
    assert queries(adbc, "SELECT count(*) FROM ingested") == [(expected,)]


def test_an_ingest_that_fails_writes_nothing(adbc):
    def broken():
        for number in range(40):
            yield pa.record_batch({"id": [number]})
        raise RuntimeError("the source is gone")

    with adbc.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (id BIGINT)")
        reader = pa.RecordBatchReader.from_batches(pa.schema({"id": pa.int64()}), broken())
        with pytest.raises(Exception, match="gone|source|cancel"):
            cursor.adbc_ingest("kept", reader, mode="append")
        with pytest.raises(adbc_driver_manager.Error, match="no column|other"):
            cursor.adbc_ingest("kept", pa.table({"other": [1]}), mode="append")
    assert queries(adbc, "SELECT count(*) FROM kept") == [(0,)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"id": [1], "other": [1]}, r'no column "other"; it has id BIGINT NOT NULL, body TEXT'),
        ({"body": ["x"]}, r'the rows have no "id", which table strict needs.*it has id BIGINT NOT NULL'),
        ({"id": [1, None], "body": ["x", "y"]}, r"column id of table strict is NOT NULL, but row 2 has no value"),
    ],
)
def test_rows_that_do_not_fit_are_the_callers_mistake(adbc, rows, message):
    with adbc.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS strict (id BIGINT NOT NULL, body TEXT)")
        with pytest.raises(adbc_driver_manager.ProgrammingError, match=message) as error:
            cursor.adbc_ingest("strict", pa.table(rows), mode="append")
    assert error.value.status_code == adbc_driver_manager.AdbcStatusCode.INVALID_ARGUMENT


def test_the_catalog_is_browsed_by_patterns(adbc):
    def tables(**filters):
        found = adbc.adbc_get_objects(depth="tables", **filters).read_all().to_pylist()
        return sorted(
            (schema["db_schema_name"], table["table_name"], table["table_type"])
            for catalog in found
            for schema in catalog["catalog_db_schemas"] or []
            for table in schema["db_schema_tables"] or []
        )

    assert ("public", "docs", "TABLE") in tables() and ("public", "texts", "VIEW") in tables()
    assert tables(db_schema_filter="oth%") == [("other", "docs", "TABLE")]
    assert tables(table_name_filter="te_ts") == [("public", "texts", "VIEW")]
    assert tables(catalog_filter="nowhere") == []
    assert tables(table_types_filter=["VIEW"]) == [("public", "texts", "VIEW")]
    assert adbc.adbc_get_table_schema("docs", db_schema_filter="other").names == ["a"]
    assert adbc.adbc_get_table_schema("docs", db_schema_filter="public").names == ["id", "body", "emb"]


def test_every_sql_info_code_and_type_is_there(server):
    client = server.client()
    info = client.get(flight.Ticket(command("CommandGetSqlInfo"))).read_all()
    codes = set(info.column("info_name").to_pylist())
    assert {*range(12), 100, 101, *range(500, 577)} <= codes
    some = client.get(flight.Ticket(command("CommandGetSqlInfo", field(1, varints(8, 504))))).read_all()
    assert some.num_rows == 2
    types = client.get(flight.Ticket(command("CommandGetXdbcTypeInfo"))).read_all()
    assert {"BIGINT", "TEXT", "TIMESTAMP", "VECTOR"} <= set(types.column("type_name").to_pylist())


def varints(*numbers: int) -> bytes:
    from flight_sql import varint

    return b"".join(varint(number) for number in numbers)


def test_keys_are_told(server):
    client = server.client()
    table = field(3, "docs")
    keys = client.get(flight.Ticket(command("CommandGetPrimaryKeys", table))).read_all().to_pylist()
    assert [(key["column_name"], key["key_sequence"], key["key_name"]) for key in keys] == [("id", 1, "docs_pkey")]
    for name in ["CommandGetExportedKeys", "CommandGetImportedKeys"]:
        none = client.get(flight.Ticket(command(name, table))).read_all()
        assert none.num_rows == 0 and none.num_columns == 13


@pytest.mark.parametrize(
    ("sql", "kind", "message"),
    [
        ("SELEC 1", adbc_driver_manager.ProgrammingError, "SELEC"),
        ("SELECT * FROM nope", adbc_driver_manager.ProgrammingError, 'no table "nope"'),
        ("SELECT nope FROM docs", adbc_driver_manager.ProgrammingError, "no column"),
        ("CREATE TABLE docs (a INT)", adbc_driver_manager.ProgrammingError, "already exists"),
        ("INSERT INTO docs (id) VALUES (1)", adbc_driver_manager.ProgrammingError, "1"),
        ("CREATE INDEX i ON docs USING graph (emb vector_l1_ops)", adbc_driver_manager.NotSupportedError, "not built"),
        ("SELECT * FROM docs ORDER BY emb <-> '[1, 2]' LIMIT 1", adbc_driver_manager.ProgrammingError, "2 .*3|3 .*2"),
        ("SELECT 1; SELECT 2", adbc_driver_manager.ProgrammingError, "2 statements"),
        ("SET exact = on", adbc_driver_manager.ProgrammingError, "no session"),
    ],
)
def test_a_users_mistake_is_never_an_internal_error(adbc, sql, kind, message):
    with pytest.raises(adbc_driver_manager.Error, match=message) as raised:
        queries(adbc, sql)
    assert isinstance(raised.value, kind), raised.value


def test_settings_belong_to_a_session(server):
    one, two = server.client(), server.client()
    one.rows("SET recall_target = 0.5")
    assert one.rows("SHOW recall_target") == [{"recall_target": "0.5"}]
    assert two.rows("SHOW recall_target") == [{"recall_target": "0.95"}]
    one.rows("PREPARE nearest AS SELECT id FROM docs ORDER BY emb <-> $1 LIMIT 1")
    assert one.rows("EXECUTE nearest('[0, 1, 0]')") == [{"id": 2}]
    with pytest.raises(REFUSED, match="no prepared statement"):
        two.rows("EXECUTE nearest('[0, 1, 0]')")
    one.act("CloseSession", b"")
    with pytest.raises(flight.FlightUnauthenticatedError, match="connect again"):
        one.rows("SELECT 1")


def test_session_options_of_adbc(server):
    options = {"adbc.flight.sql.rpc.with_cookie_middleware": "true"}
    with adbc_driver_flightsql.dbapi.connect(server.uri, db_kwargs=options, autocommit=True) as adbc:
        assert (adbc.adbc_current_catalog, adbc.adbc_current_db_schema) == ("sagitta", "public")
        adbc.adbc_current_db_schema = "public"
        with pytest.raises(adbc_driver_manager.Error):
            adbc.adbc_current_db_schema = "other"
        adbc.adbc_connection.set_options(**{"adbc.flight.sql.session.option.recall_target": "0.75"})
        assert queries(adbc, "SHOW recall_target") == [("0.75",)]


def test_a_long_statement_is_polled_listed_and_killed(server, adbc):
    """Far more work than the test waits for: it must end because it is cancelled."""
    sql = "SELECT count(*) AS forever FROM range(1000000) a, range(1000000) b WHERE a.value * b.value % 7 = 3"
    outcome = []

    def run():
        try:
            outcome.append(queries(adbc, sql))
        except adbc_driver_manager.Error as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    client = server.client()
    listed = []
    until = time.monotonic() + 60
    while not listed and time.monotonic() < until:
        found = client.rows("SELECT query_id, state FROM system.queries WHERE query LIKE '%forever%' AND query NOT LIKE '%system%'")
        listed = [row for row in found if row["state"] == "running"]
    assert listed, "the statement is not listed"
    client.rows(f"KILL QUERY '{listed[0]['query_id']}'")
    thread.join(timeout=60)
    assert not thread.is_alive() and isinstance(outcome[0], adbc_driver_manager.Error), outcome
    assert "cancelled" in str(outcome[0])
    with pytest.raises(REFUSED, match="no running statement"):
        client.rows("KILL QUERY '999999999'")


def test_cancelling_ends_a_statement_and_its_handle(server):
    client = server.client()
    info = client.info("SELECT * FROM docs")
    serialized = info.serialize()
    (body,) = client.act("CancelFlightInfo", field(1, serialized))
    assert fields(body)[1] == [1]
    with pytest.raises(REFUSED, match="handle is unknown"):
        client.get(info.endpoints[0].ticket).read_all()
    (body,) = client.act("CancelFlightInfo", field(1, serialized))
    assert fields(body)[1] == [3], "it is not there any more"


def test_an_answer_waits_longer_if_it_is_renewed(server):
    client = server.client()
    endpoint = client.info("SELECT 1 AS a").endpoints[0]
    (body,) = client.act("RenewFlightEndpoint", field(1, endpoint.serialize()))
    renewed = flight.FlightEndpoint.deserialize(body)
    assert renewed.expiration_time.as_py() >= endpoint.expiration_time.as_py()
    assert client.get(renewed.ticket).read_all().to_pylist() == [{"a": 1}]


def test_large_answers_come_in_parts_to_those_who_ask(server, adbc):
    with adbc.cursor() as cursor:
        numbers = pa.table({"n": pa.array(range(400_000))})
        for start in range(0, 400_000, 100_000):
            cursor.adbc_ingest("numbers", numbers.slice(start, 100_000), mode="create_append")
        parts, _ = cursor.adbc_execute_partitions("SELECT n FROM numbers WHERE n % 2 = 0")
        assert len(parts) > 1
        found = []
        for part in parts:
            cursor.adbc_read_partition(part)
            found.extend(cursor.fetch_arrow_table().column(0).to_pylist())
    assert sorted(found) == list(range(0, 400_000, 2))
    # A client that fetches the first part alone gets everything in it.
    client = server.client()
    info = client.info("SELECT n FROM numbers")
    assert len(info.endpoints) == 1
    assert client.get(info.endpoints[0].ticket).read_all().num_rows == 400_000
    asking = flight.FlightCallOptions(headers=[(b"x-sagitta-endpoints", b"many")])
    with pytest.raises(REFUSED, match="number from 1"):
        client.flight.get_flight_info(statement("SELECT n FROM numbers"), asking)


@pytest.mark.parametrize(
    "ticket",
    [
        b"",
        b"\xff\xff\xff",
        b"SELECT 1",
        command("TicketStatementQuery", field(1, b"short")),
        command("TicketStatementQuery", field(1, bytes(20))),
        command("TicketStatementQuery", field(1, bytes(16) + b"\xff" * 4)),
        command("CommandPreparedStatementQuery", field(1, bytes(16))),
        command("CommandNobodyKnows"),
        field(1, "x/y") + field(2, b"\x08"),
        command("CommandGetSqlInfo", field(1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")),
    ],
)
def test_tickets_that_mean_nothing_are_refused(server, ticket):
    client = server.client()
    with pytest.raises(REFUSED) as raised:
        client.get(flight.Ticket(ticket)).read_all()
    assert "panic" not in str(raised.value).lower()
    assert client.rows("SELECT 1 AS a") == [{"a": 1}], "the server goes on"


def test_random_messages_do_no_harm(server):
    client = server.client()
    random = np.random.default_rng(20261128)
    good = [
        command("CommandStatementQuery", field(1, "SELECT 1")),
        command("CommandGetTables", field(3, "d%"), field(5, True)),
        command("CommandStatementIngest", field(2, "nothing")),
        client.info("SELECT 1").endpoints[0].ticket.ticket,
    ]
    for number in range(600):
        message = bytearray(good[number % len(good)])
        for _ in range(random.integers(1, 6)):
            message[random.integers(len(message))] = random.integers(256)
        message = bytes(message[: random.integers(1, len(message) + 1)])
        calls = [
            lambda: client.get(flight.Ticket(message)).read_all(),
            lambda: client.flight.get_flight_info(flight.FlightDescriptor.for_command(message), client.options),
            lambda: client.act(["CreatePreparedStatement", "CancelFlightInfo", "SetSessionOptions", "RenewFlightEndpoint"][number % 4], message),
        ]
        try:
            calls[number % 3]()
        except REFUSED as error:
            assert "panic" not in str(error).lower(), (message, error)
    assert client.rows("SELECT count(*) AS n FROM docs") == [{"n": 3}]


def test_health_and_figures_are_told(server):
    def fetched(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert fetched("/healthz")[0] == 200 and fetched("/readyz")[0] == 200 and fetched("/nothing")[0] == 404
    before = figures(fetched("/metrics")[1])
    client = server.client()
    client.rows("SELECT * FROM docs")
    after = figures(fetched("/metrics")[1])
    ok = 'sagitta_statements_total{kind="query",outcome="ok"}'
    assert after[ok] == before[ok] + 1
    assert after["sagitta_rows_sent_total"] == before["sagitta_rows_sent_total"] + 3
    assert after["sagitta_sessions"] >= 1 and after["sagitta_memory_limit_bytes"] > 0
    assert after["sagitta_statements_running"] == 0


def figures(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_the_shell_is_a_client_too(server, sagitta, tmp_path):
    shell = sagitta.__class__(str(tmp_path / "unused"), environment={"SAGITTA_CONNECT": server.uri})
    assert shell.sql("SELECT id, body FROM docs ORDER BY id LIMIT 2") == [{"id": 1, "body": "one"}, {"id": 2, "body": "two"}]
    assert "docs" in shell.ok("-c", "\\dt").decode()
    error = shell.fails("SELECT *\nFROM dogs")
    assert "^^^^" in error and 'did you mean "docs"' in error
    assert re.search(r"DELETE 0", shell.ok("-c", "DELETE FROM docs WHERE id > 100").decode())
    assert not (tmp_path / "unused").exists()


def test_a_server_beyond_loopback_asks_who_one_is(sagitta):
    refused = sagitta.run("serve", "--listen", "0.0.0.0:0")
    assert refused.returncode == 2 and "--insecure" in refused.stderr


def test_all_is_released_when_a_client_goes(server):
    """Sessions and handles of clients that are closed do not stay."""
    for _ in range(20):
        client = server.client()
        client.info("SELECT * FROM docs")
        client.prepare("SELECT 1")
        client.act("CloseSession", b"")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=20) as answer:
        after = figures(answer.read().decode())
    assert after["sagitta_sessions"] < 60
