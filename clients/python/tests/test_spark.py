"""Tables as Spark data frames, and back. One Spark session for all tests."""

import os
import sys

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("pyspark")

os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable

import test_readme
from pyspark.sql import SparkSession
from pyspark.sql import functions as functions
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition

import sagitta
import sagitta.spark

ROWS = 250_000  # Enough for the server to give the answer in parts.


@pytest.fixture(scope="module")
def spark(uri):
    session = (
        SparkSession.builder.master("local[2]")
        .appName("sagitta-tests")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    sagitta.spark.register(session)
    yield session
    session.stop()


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    rng = np.random.default_rng(11)
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "i": pa.array([None if i % 11 == 0 else i % 7 for i in range(ROWS)], pa.int32()),
            "s": pa.array([None if i % 13 == 0 else f"s{i % 5}" for i in range(ROWS)]),
            "f": pa.array(rng.normal(size=ROWS)),
            "u": pa.array(np.arange(ROWS) % 256, pa.uint8()),
            "emb": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=ROWS * 4).astype(np.float32)), 4),
            "half": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(ROWS * 2) % 512, pa.float16()), 2),
        }
    )


@pytest.fixture(scope="module")
def table(uri, rows):
    with sagitta.connect(uri) as connection:
        connection.execute("DROP SCHEMA IF EXISTS spark_tests CASCADE")
        connection.execute("CREATE SCHEMA spark_tests")
        connection.ingest("spark_tests.t", rows)
    yield "spark_tests.t"
    with sagitta.connect(uri) as connection:
        connection.execute("DROP SCHEMA spark_tests CASCADE")


@pytest.fixture
def read(spark, uri):
    return lambda **options: spark.read.format("sagitta").options(uri=uri, **options)


def test_a_table_is_read_in_parts(read, table, rows):
    frame = read(columns="id,i,s,u").load(table)
    assert frame.rdd.getNumPartitions() > 1
    assert frame.selectExpr("count(*)", "count(i)", "count(s)", "sum(id)", "sum(u)").first() == (
        ROWS,
        ROWS - rows["i"].null_count,
        ROWS - rows["s"].null_count,
        ROWS * (ROWS - 1) // 2,
        sum(rows["u"].to_pylist()),
    )
    assert frame.select("id").distinct().count() == ROWS


def test_one_part_is_one_partition(read, table):
    frame = read(columns="id", partitions="1").load(table)
    assert frame.rdd.getNumPartitions() == 1
    assert frame.count() == ROWS


def test_vectors_are_arrays(read, table, rows):
    frame = read(where="id BETWEEN 1000 AND 1004").load(table)
    kinds = dict(frame.dtypes)
    assert (kinds["u"], kinds["emb"], kinds["half"]) == ("smallint", "array<float>", "array<float>")
    found = [row.asDict() for row in frame.orderBy("id").collect()]
    assert found == rows.slice(1000, 5).to_pylist()


def test_a_query_is_read(read, table):
    frame = read(query=f"SELECT i, count(*) AS n, avg(f) AS mean FROM {table} GROUP BY i ORDER BY i;").load()
    assert frame.count() == 8
    assert frame.selectExpr("sum(n)").first()[0] == ROWS


def test_a_search_is_read(read, table, rows):
    query = rows["emb"][77].as_py()
    frame = read(query=f"SELECT id, _distance FROM vector_search('{table}', 'emb', '{query}', k => 5, metric => 'l2')").load()
    found = frame.orderBy("_distance").collect()
    assert (len(found), found[0]["id"], found[0]["_distance"]) == (5, 77, 0)


CONDITION = "i > 3 AND s IN ('s1', 's2') AND f > 0 AND NOT (u = 7) AND (id % 2 = 0 OR i = 5) AND s LIKE 's%'"


def expected(rows: pa.Table) -> list[int]:
    def keeps(row) -> bool:
        return (
            row["i"] is not None
            and row["i"] > 3
            and row["s"] in ("s1", "s2")
            and row["f"] > 0
            and row["u"] != 7
            and (row["id"] % 2 == 0 or row["i"] == 5)
        )

    return [row["id"] for row in rows.select(["id", "i", "s", "f", "u"]).to_pylist() if keeps(row)]


def test_filters_are_those_of_spark(read, table, rows):
    frame = read(columns="id,i,s,f,u").load(table)
    assert [row["id"] for row in frame.filter(CONDITION).orderBy("id").collect()] == expected(rows)
    assert frame.count() == ROWS


def test_pushed_filters_give_the_same(spark, read, table, rows):
    spark.conf.set("spark.sql.python.filterPushdown.enabled", "true")
    try:
        frame = read(columns="id,i,s,f,u", pushdown="once").load(table)
        assert [row["id"] for row in frame.filter(CONDITION).orderBy("id").collect()] == expected(rows)
    finally:
        spark.conf.set("spark.sql.python.filterPushdown.enabled", "false")


def numbers_source():
    """A source of 0 to 9 that takes over `x > …`. Made in a function: the workers cannot import this module."""

    class Numbers(DataSourceReader):
        least = 0

        def pushFilters(self, filters):
            for condition in filters:
                if type(condition).__name__ == "GreaterThan":
                    self.least = condition.value + 1
            return filters

        def partitions(self):
            return [InputPartition(0)]

        def read(self, partition):
            return iter([(number,) for number in range(self.least, 10)])

    class Source(DataSource):
        @classmethod
        def name(cls):
            return "numbers"

        def schema(self):
            return "x int"

        def reader(self, schema):
            return Numbers()

    return Source


def test_why_pushdown_is_off(spark):
    """Spark reads what it planned for a filter again without the filter. If this fails, Spark is mended: turn pushdown on."""
    spark.conf.set("spark.sql.python.filterPushdown.enabled", "true")
    try:
        spark.dataSource.register(numbers_source())
        frame = spark.read.format("numbers").load()
        assert frame.count() == 10
        assert frame.filter("x > 6").count() == 3
        assert frame.count() == 3, "ten are right"
    finally:
        spark.conf.set("spark.sql.python.filterPushdown.enabled", "false")


def test_what_is_missing_is_named(read):
    with pytest.raises(Exception, match="nowhere"):
        read().load("nowhere")
    with pytest.raises(Exception, match="no option frobs"):
        read(frobs="1").load("t")


# --- Writing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sink(connection, lab):
    connection.execute(
        f"CREATE TABLE {lab}.sink (id BIGINT PRIMARY KEY, s TEXT DEFAULT 'none', u TINYINT UNSIGNED, emb VECTOR(4))"
    )
    return f"{lab}.sink"


def write(frame, uri, table, mode="append"):
    frame.write.format("sagitta").options(uri=uri, table=table).mode(mode).save()


def version(connection, table):
    schema, name = table.split(".")
    sql = "SELECT version FROM system.tables WHERE table_schema = $1 AND table_name = $2"
    return connection.query(sql, [schema, name])["version"][0].as_py()


def test_a_frame_is_appended_in_one_version(connection, lab, uri, read, table, rows, sink):
    before = version(connection, sink)
    write(read(columns="id,u,emb").load(table).repartition(3), uri, sink)
    assert version(connection, sink) == before + 1
    found = connection.query(f"SELECT * FROM {sink} ORDER BY id")
    assert found["id"].to_pylist() == list(range(ROWS))
    assert set(found["s"].to_pylist()) == {"none"}
    assert found["u"].equals(rows["u"])
    np.testing.assert_array_equal(sagitta.vectors(found["emb"]), sagitta.vectors(rows["emb"]))
    assert [relation.name for relation in connection.tables(lab)] == ["sink"]


def test_an_empty_frame_adds_nothing(connection, uri, spark, sink):
    before = version(connection, sink)
    write(spark.createDataFrame([], "id long, s string"), uri, sink)
    assert version(connection, sink) == before


def test_a_job_that_fails_adds_nothing(connection, lab, uri, read, table, spark, sink):
    frame = read(columns="id").load(table)
    failing = frame.select(
        "id",
        functions.when(functions.col("id") == 249_999, functions.raise_error(functions.lit("broken")))
        .cast("smallint")
        .alias("u"),
    )
    with pytest.raises(Exception, match="broken"):
        write(failing.repartition(3), uri, sink)
    too_large = frame.select("id", (functions.col("id") % 300).cast("smallint").alias("u"))
    with pytest.raises(Exception, match="does not fit"):
        write(too_large, uri, sink)
    wrong_length = frame.select("id", functions.array(functions.lit(1.0)).alias("emb"))
    with pytest.raises(Exception, match="does not fit"):
        write(wrong_length, uri, sink)
    twice = frame.select((functions.col("id") % 1000).alias("id"))
    with pytest.raises(Exception, match="(?i)(key|duplicate)"):
        write(twice, uri, sink)
    assert connection.query(f"SELECT count(*) AS n FROM {sink}")["n"].to_pylist() == [0]
    assert [relation.name for relation in connection.tables(lab)] == ["sink"]


def test_what_cannot_be_written_is_refused_before_anything_runs(uri, spark, sink):
    frame = spark.createDataFrame([(1, "a")], "id long, s string")
    with pytest.raises(Exception, match="has a column other"):
        write(frame.withColumnRenamed("s", "other"), uri, sink)
    with pytest.raises(Exception, match="needs a value for id"):
        write(frame.select("s"), uri, sink)
    with pytest.raises(Exception, match="append"):
        write(frame, uri, sink, "overwrite")
    with pytest.raises(Exception, match="nowhere"):
        write(frame, uri, "nowhere")


def test_the_blocks_of_the_readme_run(connection, uri, spark):
    rows = {"id": np.arange(1_000), "lang": ["de", "en"] * 500, "emb": np.zeros((1_000, 64), np.float32)}
    connection.ingest("docs", rows, "replace")
    test_readme.run(test_readme.blocks(of_spark=True), uri, spark=spark)
    assert connection.query("SELECT count(*) AS n FROM docs WHERE id = 5000")["n"].to_pylist() == [1]
