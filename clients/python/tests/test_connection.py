"""A connection to a server: statements, parameters, tables, settings, errors."""

import datetime
import decimal
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

import sagitta


@pytest.fixture
def docs(connection, lab) -> str:
    """A table of three rows."""
    name = f"{lab}.docs"
    connection.execute(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, body TEXT, emb VECTOR(2))")
    rows = [[1, "a", [1.0, 0.0]], [2, "it's", [0.0, 1.0]], [3, None, None]]
    assert connection.executemany(f"INSERT INTO {name} VALUES ($1, $2, $3)", rows) == 3
    return name


# --- Statements -------------------------------------------------------------------------------------------------------


def test_rows_come_as_arrow(connection, docs):
    table = connection.query(f"SELECT id, body, emb FROM {docs} ORDER BY id")
    assert table.to_pydict() == {"id": [1, 2, 3], "body": ["a", "it's", None], "emb": [[1, 0], [0, 1], None]}
    assert table.schema.field("emb").type.list_size == 2
    assert table.schema.field("emb").type.value_type == pa.float32()


def test_an_answer_without_rows_has_its_columns(connection, docs):
    assert connection.query(f"SELECT id, emb FROM {docs} WHERE false").schema.names == ["id", "emb"]
    with connection.stream(f"SELECT id FROM {docs} WHERE false") as reader:
        assert reader.schema.names == ["id"]
        assert reader.read_all().num_rows == 0


def test_execute_says_how_many_rows_were_written(connection, docs):
    assert connection.execute(f"INSERT INTO {docs} (id) VALUES (4), (5)") == 2
    assert connection.execute(f"INSERT INTO {docs} (id, body) VALUES ($1, ?)".replace("?", "$2"), [6, "x"]) == 1
    assert connection.execute(f"UPDATE {docs} SET body = 'y' WHERE id > $1", [3]) == 3
    assert connection.execute(f"DELETE FROM {docs} WHERE id > 5") == 1
    assert connection.execute(f"DELETE FROM {docs} WHERE id > 4 RETURNING id") == 1
    assert connection.execute(f"SELECT * FROM {docs}") == 4


def test_a_statement_runs_once_however_it_is_sent(connection, docs):
    """A prepared statement, a cursor, `query`: an INSERT is carried out once by each."""
    connection.execute(f"INSERT INTO {docs} (id) VALUES (10)")
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {docs} (id) VALUES (11)")
        assert (cursor.rowcount, cursor.description) == (1, None)
        cursor.execute(f"INSERT INTO {docs} (id) VALUES (12) RETURNING id")
        assert cursor.fetchall() == [(12,)]
    connection.query(f"INSERT INTO {docs} (id) VALUES (13)")
    found = connection.query(f"SELECT id FROM {docs} WHERE id >= 10 ORDER BY id")["id"].to_pylist()
    assert found == [10, 11, 12, 13]


def test_both_ways_to_write_parameters(connection, docs):
    for sql in (f"SELECT body FROM {docs} WHERE id = $1 AND body = $2", f"SELECT body FROM {docs} WHERE id = ? AND body = ?"):
        assert connection.query(sql, [2, "it's"])["body"].to_pylist() == ["it's"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("BOOLEAN", True),
        ("SMALLINT", -32768),
        ("INTEGER", 2**31 - 1),
        ("BIGINT", -(2**63)),
        ("REAL", 0.5),
        ("DOUBLE", 0.1),
        ("DECIMAL(12, 3)", decimal.Decimal("-123456789.125")),
        ("TEXT", "ünï'\"\\; DROP TABLE docs; --"),
        ("TEXT", ""),
        ("BYTEA", b"\x00\xff"),
        ("DATE", datetime.date(2026, 2, 28)),
        ("TIMESTAMP", datetime.datetime(2026, 2, 28, 1, 2, 3, 456789)),
        ("TEXT", None),
        ("BIGINT", None),
    ],
)
def test_values_come_back_as_they_were(connection, lab, kind, value):
    connection.execute(f"CREATE TABLE {lab}.t (x {kind})")
    connection.execute(f"INSERT INTO {lab}.t VALUES ($1)", [value])
    assert connection.query(f"SELECT x FROM {lab}.t")["x"].to_pylist() == [value]
    condition = "x IS NULL" if value is None else "x = $1"
    assert (
        connection.query(f"SELECT count(*) AS n FROM {lab}.t WHERE {condition}", [] if value is None else [value])["n"][
            0
        ].as_py()
        == 1
    )
    if value is not None and kind != "REAL":
        constant = sagitta.literal(value)
        assert connection.query(f"SELECT count(*) AS n FROM {lab}.t WHERE x = {constant}")["n"][0].as_py() == 1


@pytest.mark.parametrize(
    "name", ["Weird Name", 'a"b', "select", "ünï", "a.b", "x; DROP TABLE y; --", "per%cent_", "back\\slash"]
)
def test_any_name_can_be_a_table_and_a_column(connection, lab, name):
    column = name.replace(".", "_")  # Files of tables allow no dot in the name of a column.
    rows = {column: ["a", "b"], "emb": np.eye(2, dtype=np.float32)}
    assert connection.ingest((lab, name), rows) == 2
    assert connection.schema((lab, name)).names == [column, "emb"]
    assert connection.query(f"SELECT {sagitta.identifier(column)} FROM {lab}.{sagitta.identifier(name)}").num_rows == 2
    found = connection.search((lab, name), "emb", [0, 1], k=1, columns=[column], filter={column: ["a", "b"]})
    assert found[column].to_pylist() == ["b"]
    assert name in [table.name for table in connection.tables(lab)]
    found = connection.search(connection.tables(lab)[0], "emb", [0, 1], k=1)
    assert found.num_rows == 1


def test_vectors_of_every_kind_are_parameters(connection, docs):
    sql = f"SELECT id FROM {docs} ORDER BY emb <-> $1 LIMIT 1"
    for vector in ([0, 1], (0.0, 1.0), np.array([0, 1]), np.array([0, 1], np.float16), np.array([0.0, 1.0]), "[0, 1]"):
        assert connection.query(sql, [vector])["id"].to_pylist() == [2]


def test_a_wrong_vector_is_the_callers_mistake(connection, docs):
    with pytest.raises(sagitta.ProgrammingError, match="3"):
        connection.query(f"SELECT id FROM {docs} ORDER BY emb <-> $1 LIMIT 1", [[1, 2, 3]])


def test_the_number_of_parameters_must_be_right(connection, docs):
    for parameters in ([], [1, 2]):
        with pytest.raises(sagitta.Error, match="."):
            connection.query(f"SELECT id FROM {docs} WHERE id = $1", parameters)
    with pytest.raises(TypeError, match="numbers, not names"):
        connection.query("SELECT $1", {"a": 1})


def test_a_cursor_is_that_of_the_db_api(connection, docs):
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id, body FROM {docs} ORDER BY id")
        assert [column[0] for column in cursor.description] == ["id", "body"]
        assert cursor.fetchone() == (1, "a")
        assert cursor.fetchmany(1) == [(2, "it's")]
        assert cursor.fetchall() == [(3, None)]
        assert cursor.fetchone() is None
        cursor.execute(f"SELECT id FROM {docs} ORDER BY id")
        assert [row for (row,) in cursor] == [1, 2, 3]
        cursor.executemany(f"DELETE FROM {docs} WHERE id = ?", [[1], [2]])
        assert cursor.rowcount == 2
        cursor.executemany(f"DELETE FROM {docs} WHERE id = ?", [])
    assert sagitta.paramstyle == "qmark"
    assert sagitta.apilevel == "2.0"


def test_a_large_answer_is_streamed_in_order(connection):
    with connection.stream("SELECT value FROM generate_series(1, 300000) ORDER BY value") as reader:
        expected = 1
        for batch in reader:
            values = batch.column(0).to_numpy()
            np.testing.assert_array_equal(values, np.arange(expected, expected + len(values)))
            expected += len(values)
    assert expected == 300_001


def test_a_row_of_many_megabytes_comes(connection, lab):
    connection.ingest((lab, "big"), {"body": ["x" * (20 << 20)]})
    assert connection.query(f"SELECT length(body) AS n, body FROM {lab}.big")["n"].to_pylist() == [20 << 20]


def test_one_connection_asks_several_things_at_once(connection, docs):
    with connection.stream(f"SELECT * FROM {docs}") as reader:
        assert connection.query("SELECT 1 AS one").num_rows == 1
        assert reader.read_all().num_rows == 3


# --- Transactions and errors ------------------------------------------------------------------------------------------


def test_there_are_no_transactions_and_that_is_said(connection, docs):
    connection.commit()
    connection.query(f"SELECT * FROM {docs}")
    connection.rollback()
    connection.execute(f"INSERT INTO {docs} (id) VALUES (99)")
    with pytest.raises(sagitta.NotSupportedError, match="cannot undo"):
        connection.rollback()
    assert connection.query(f"SELECT count(*) AS n FROM {docs} WHERE id = 99")["n"].to_pylist() == [1]
    connection.execute(f"INSERT INTO {docs} (id) VALUES (100)")
    connection.commit()
    connection.rollback()


def test_errors_are_those_of_the_db_api(connection, docs):
    with pytest.raises(sagitta.ProgrammingError, match="(?i)selec"):
        connection.query("SELEC 1")
    with pytest.raises(sagitta.Error, match="(?i)nowhere"):
        connection.query("SELECT * FROM nowhere")
    with pytest.raises(sagitta.Error, match="(?i)missing"):
        connection.query(f"SELECT missing FROM {docs}")
    with pytest.raises(sagitta.Error, match="(?i)exist"):
        connection.execute(f"CREATE TABLE {docs} (id INT)")
    for again in (
        lambda: connection.execute(f"INSERT INTO {docs} (id) VALUES (1)"),
        lambda: connection.execute(f"INSERT INTO {docs} (id) VALUES (1) RETURNING id"),
        lambda: connection.executemany(f"INSERT INTO {docs} (id) VALUES ($1)", [[7], [1]]),
        lambda: connection.ingest(docs, {"id": [1]}, "append"),
    ):
        with pytest.raises(sagitta.IntegrityError, match="(?i)(key|duplicate)"):
            again()
    with pytest.raises(sagitta.NotSupportedError, match="(?i)for update|lock"):
        connection.query(f"SELECT * FROM {docs} WHERE id = $1 FOR UPDATE", [1])
    assert connection.query("SELECT 1 AS one").num_rows == 1


def test_a_connection_can_be_closed_twice(uri):
    connection = sagitta.connect(uri)
    connection.close()
    connection.close()
    with pytest.raises(Exception, match="(?i)clos"):
        connection.query("SELECT 1")


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(sagitta.OperationalError, match="sagitta serve --listen 127.0.0.1:1"):
        sagitta.connect("grpc://127.0.0.1:1")


def test_a_schema_that_cannot_be_the_current_one_is_explained(uri):
    with sagitta.connect(uri + "/public") as connection:
        assert connection.query("SELECT 1 AS one").num_rows == 1
    with pytest.raises(sagitta.Error, match="name it with the table"):
        sagitta.connect(uri + "/lab")


def test_a_running_statement_is_cancelled_from_another_thread(connection):
    failed = []

    def run():
        try:
            connection.query("SELECT count(*) FROM generate_series(1, 10000000) a, generate_series(1, 10000000) b")
        except sagitta.Error as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 30
    while thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.2)
        connection.cancel()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert failed
    assert connection.query("SELECT 1 AS one").num_rows == 1


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_the_modes_of_ingest(connection, lab):
    rows = {"id": np.arange(3), "emb": np.eye(3, dtype=np.float32)}
    count = lambda: connection.query(f"SELECT count(*) AS n FROM {lab}.t")["n"][0].as_py()
    with pytest.raises(sagitta.Error, match="(?i)t"):
        connection.ingest((lab, "t"), rows, "append")
    assert connection.ingest("t", rows, "create", schema=lab) == 3
    with pytest.raises(sagitta.Error, match="(?i)exist"):
        connection.ingest("t", rows, "create", schema=lab)
    assert connection.ingest(f"{lab}.t", rows, "append") == 3
    assert count() == 6
    assert connection.ingest((lab, "t"), rows, "create_append") == 3
    assert count() == 9
    assert connection.ingest((lab, "t"), {"other": [1]}, "replace") == 1
    assert connection.schema((lab, "t")).names == ["other"]
    assert connection.ingest((lab, "u"), rows, "create_append") == 3
    assert connection.ingest((lab, "v"), rows, "replace") == 3
    with pytest.raises(ValueError, match="mode is one of"):
        connection.ingest((lab, "t"), rows, "upsert")
    with pytest.raises(sagitta.Error, match="(?i)(wrong|column)"):
        connection.ingest((lab, "u"), {"wrong": [1]}, "append")


def test_an_ingest_is_one_version_and_all_or_nothing(connection, lab):
    connection.execute(f"CREATE TABLE {lab}.t (id BIGINT PRIMARY KEY)")
    version = lambda: connection.query(f"SELECT version FROM system.tables WHERE table_schema = '{lab}' AND table_name = 't'")[
        "version"
    ][0].as_py()
    before = version()
    batches = [pa.record_batch({"id": np.arange(start, start + 1000)}) for start in range(0, 10_000, 1000)]
    assert connection.ingest((lab, "t"), pa.RecordBatchReader.from_batches(batches[0].schema, batches), "append") == 10_000
    assert version() == before + 1
    with pytest.raises(sagitta.Error, match="(?i)(key|duplicate)"):
        connection.ingest((lab, "t"), {"id": np.arange(9_990, 20_000)}, "append")
    assert connection.query(f"SELECT count(*) AS n, max(id) AS m FROM {lab}.t").to_pylist() == [{"n": 10_000, "m": 9_999}]

    def failing():
        yield batches[0].slice(0, 0)
        yield pa.record_batch({"id": [50_000]})
        raise RuntimeError("the source broke")

    with pytest.raises(Exception, match="(?s)source broke|."):
        connection.ingest((lab, "t"), pa.RecordBatchReader.from_batches(batches[0].schema, failing()), "append")
    assert connection.query(f"SELECT count(*) AS n FROM {lab}.t")["n"].to_pylist() == [10_000]


def test_what_was_ingested_comes_back(connection, lab):
    rng = np.random.default_rng(3)
    table = pa.table(
        {
            "id": pa.array(range(5_000), pa.int64()),
            "small": pa.array([None if i % 5 == 0 else i % 100 for i in range(5_000)], pa.int16()),
            "text": pa.array([None if i % 7 == 0 else f"text {i}" for i in range(5_000)]),
            "flag": pa.array([i % 2 == 0 for i in range(5_000)]),
            "day": pa.array([datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in range(5_000)]),
            "at": pa.array([datetime.datetime(2020, 1, 1) + datetime.timedelta(microseconds=i) for i in range(5_000)]),
            "price": pa.array([decimal.Decimal(i).scaleb(-2) for i in range(5_000)], pa.decimal128(10, 2)),
            "f32": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=5_000 * 3).astype(np.float32)), 3),
            "f16": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=5_000 * 3).astype(np.float16)), 3),
            "u8": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, 5_000 * 3).astype(np.uint8)), 3),
            "tags": pa.array([[f"t{j}" for j in range(i % 4)] for i in range(5_000)]),
            "kind": pa.array([f"k{i % 3}" for i in range(5_000)]).dictionary_encode(),
        }
    )
    # A slice from the middle: what is before it must not be sent.
    assert connection.ingest((lab, "t"), table.slice(100, 4_000)) == 4_000
    found = connection.query(f"SELECT * FROM {lab}.t ORDER BY id")
    assert found.column_names == table.column_names
    for name in table.column_names:
        assert found[name].to_pylist() == table[name].slice(100, 4_000).to_pylist(), name
    kinds = {field.name: field.type for field in found.schema}
    assert (kinds["f32"].value_type, kinds["f16"].value_type, kinds["u8"].value_type) == (
        pa.float32(),
        pa.float16(),
        pa.uint8(),
    )


def test_frames_go_in_and_come_out(connection, lab):
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    frame = pandas.DataFrame({"id": [1, 2], "emb": [np.array([1, 2], np.float32), np.array([3, 4], np.float32)]})
    connection.ingest((lab, "p"), frame)
    back = connection.query_pandas(f"SELECT * FROM {lab}.p ORDER BY id")
    assert back["id"].tolist() == [1, 2]
    np.testing.assert_array_equal(np.stack(back["emb"]), [[1, 2], [3, 4]])
    connection.ingest(
        (lab, "q"),
        polars.from_pandas(frame[["id"]]).with_columns(
            emb=polars.Series(frame["emb"].tolist(), dtype=polars.Array(polars.Float32, 2))
        ),
    )
    back = connection.query_polars(f"SELECT * FROM {lab}.q ORDER BY id")
    assert back.schema["emb"] == polars.Array(polars.Float32, 2)
    assert pandas.read_sql(f"SELECT id FROM {lab}.q ORDER BY id", connection)["id"].tolist() == [1, 2]
    assert polars.read_database(f"SELECT id FROM {lab}.q ORDER BY id", connection)["id"].to_list() == [1, 2]


def test_tables_and_views_are_listed(connection, lab):
    connection.execute(f"CREATE TABLE {lab}.b (id INT)")
    connection.execute(f"CREATE VIEW {lab}.a AS SELECT id FROM {lab}.b")
    assert connection.tables(lab) == [sagitta.Relation(lab, "a", "VIEW"), sagitta.Relation(lab, "b", "BASE TABLE")]
    assert sagitta.Relation(lab, "b", "BASE TABLE") in connection.tables()
    assert all(table.schema != "information_schema" for table in connection.tables())
    assert connection.schema(connection.tables(lab)[0]).names == ["id"]


# --- The session ------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_connection(uri):
    show = lambda connection: connection.query("SHOW exact").column(0)[0].as_py()
    with sagitta.connect(uri, settings={"exact": True}) as one, sagitta.connect(uri) as other:
        assert (show(one), show(other)) == ("on", "off")
        one.set(exact=None)
        other.set(exact=True, statement_timeout="50ms")
        assert (show(one), show(other)) == ("off", "on")
        with pytest.raises(sagitta.Error, match="(?i)(timeout|longer|cancel)"):
            other.query("SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b")
    with pytest.raises(sagitta.Error, match="frobs"):
        sagitta.connect(uri, settings={"frobs": 1})
    with sagitta.connect(uri) as one, pytest.raises(ValueError, match="no name of a setting"):
        one.set(**{"exact = on; DROP TABLE x": 1})


def test_the_catalog_and_the_schema_are_those_of_the_server(connection):
    assert connection.adbc_current_catalog == "sagitta"
    assert connection.adbc_current_db_schema == "public"
    with pytest.raises(sagitta.NotSupportedError, match="settings"):
        connection.adbc_clone()


def test_a_user_and_a_password_are_taken(uri):
    with sagitta.connect(uri, "anna", "geheim", settings={"exact": True}) as connection:
        assert connection.query("SHOW exact").column(0)[0].as_py() == "on"
        assert "geheim" not in repr(connection)


def test_the_metadata_calls_of_adbc(connection, docs, lab):
    assert connection.adbc_get_info()["vendor_name"].lower().startswith("sagitta")
    assert "BASE TABLE" in connection.adbc_get_table_types() or "TABLE" in connection.adbc_get_table_types()
    assert connection.adbc_get_table_schema("docs", db_schema_filter=lab).names == ["id", "body", "emb"]
    objects = connection.adbc_get_objects(depth="all", db_schema_filter=lab).read_all().to_pylist()
    (catalog,) = objects
    (schema,) = catalog["catalog_db_schemas"]
    (table,) = schema["db_schema_tables"]
    assert [column["column_name"] for column in table["table_columns"]] == ["id", "body", "emb"]
    with connection.cursor() as cursor:
        assert cursor.adbc_execute_schema(f"SELECT id FROM {docs}").names == ["id"]
        assert cursor.adbc_prepare(f"SELECT id FROM {docs} WHERE emb <-> $1 < $2") is not None
        partitions, schema = cursor.adbc_execute_partitions(f"SELECT id FROM {docs}")
        assert schema.names == ["id"]
        rows = 0
        for partition in partitions:
            cursor.adbc_read_partition(partition)
            rows += cursor.fetch_arrow_table().num_rows
        assert rows == 3
