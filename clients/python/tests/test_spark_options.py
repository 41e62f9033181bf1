"""The Spark source without a server: options, filters, types."""

import datetime

import pyarrow as pa
import pytest

pytest.importorskip("pyspark")

from pyspark.sql import datasource as spark

from sagitta.spark import Request, _in_spark_types, _in_target_types, _listed, spark_schema, translate


def test_a_table_or_a_query_is_read():
    assert Request.of({"table": "lab.docs"}).select() == 'SELECT * FROM "lab"."docs"'
    assert Request.of({"path": "docs", "columns": 'id,"a, b"'}).select() == 'SELECT "id", "a, b" FROM "docs"'
    assert Request.of({"TABLE": "docs", "where": "id < 3 -- few"}).select() == 'SELECT * FROM "docs" WHERE (id < 3 -- few\n)'
    assert Request.of({"query": "SELECT 1 AS x;"}).select() == "SELECT * FROM (SELECT 1 AS x\n) AS q"
    assert Request.of({"table": "docs", "uri": "sagitta://localhost/lab"}).select() == 'SELECT * FROM "lab"."docs"'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "table and query"),
        ({"table": "a", "query": "b"}, "table and query"),
        ({"table": "a", "frobs": "1"}, "no option frobs"),
        ({"table": "a", "partitions": "0"}, "partitions is a whole number"),
        ({"table": "a", "partitions": "many"}, "partitions is a whole number"),
        ({"table": "a", "pushdown": "true"}, "off or once"),
        ({"table": "a", "columns": "id,"}, "empty name"),
        ({"table": "a", "columns": '"id'}, "closing quote"),
        ({"table": "a", "columns": '"id"x'}, "comma"),
        ({"table": "a", "uri": "frob://x"}, "frob://"),
        ({"table": "a", "user": "anna", "token": "t"}, "token"),
        ({"table": "a", "tls_skip_verify": "true"}, "plain text"),
    ],
)
def test_options_that_say_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=".") as caught:
        Request.of(options)
    assert said in str(caught.value)


def test_names_between_commas():
    assert list(_listed(' id , "a ""quoted"" name" ,x')) == ["id", 'a "quoted" name', "x"]


def test_secrets_are_in_no_representation():
    request = Request.of({"table": "a", "user": "anna", "password": "geheim", "uri": "grpc://db"})
    assert "geheim" not in repr(request)


FIELDS = pa.schema(
    {
        "i": pa.int32(),
        "s": pa.string(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "d": pa.date32(),
        "t": pa.timestamp("us"),
        "n": pa.timestamp("ns"),
    }
)


@pytest.mark.parametrize(
    ("condition", "sql"),
    [
        (spark.EqualTo(("i",), 3), '("i" = 3)'),
        (spark.GreaterThan(("s",), "x'"), """("s" > 'x''')"""),
        (spark.LessThanOrEqual(("d",), datetime.date(2020, 1, 2)), """("d" <= DATE '2020-01-02')"""),
        (spark.GreaterThanOrEqual(("f",), 0.5), '("f" >= 0.5 OR isnan("f"))'),
        (spark.EqualNullSafe(("i",), None), '("i" IS NULL)'),
        (spark.EqualNullSafe(("i",), 3), '("i" = 3)'),
        (spark.Not(spark.EqualTo(("i",), 3)), '(NOT ("i" = 3))'),
        (spark.Not(spark.EqualNullSafe(("i",), 3)), None),
        (spark.In(("i",), (1, 2)), '("i" IN (1, 2))'),
        (spark.In(("i",), (1, None)), '("i" IN (1))'),
        (spark.Not(spark.In(("i",), (1, None))), None),
        (spark.IsNull(("f",)), '("f" IS NULL)'),
        (spark.Not(spark.IsNull(("f",))), '(NOT ("f" IS NULL))'),
        (spark.IsNotNull(("n",)), '("n" IS NOT NULL)'),
        (spark.StringStartsWith(("s",), "a%"), """starts_with("s", 'a%')"""),
        (spark.StringContains(("s",), "a"), None),
        (spark.EqualTo(("b",), True), '("b" = TRUE)'),
        (spark.EqualTo(("i", "x"), 3), None),
        (spark.EqualTo(("other",), 3), None),
        (spark.GreaterThan(("n",), datetime.datetime(2020, 1, 1)), None),
        (spark.GreaterThan(("t",), datetime.datetime(2020, 1, 1)), """("t" > TIMESTAMP '2020-01-01 00:00:00')"""),
    ],
)
def test_filters_become_sql(condition, sql):
    found = translate(condition, FIELDS)
    assert (found.sql if found else None) == sql


def test_types_become_those_of_spark():
    batch = pa.record_batch(
        {
            "v": pa.array([[1, 2], None], pa.list_(pa.float16(), 2)),
            "s": pa.array(["a", None], pa.string_view()),
            "k": pa.array(["x", "x"]).dictionary_encode(),
            "u": pa.array([2**32 - 1, None], pa.uint32()),
            "w": pa.array([2**64 - 1, 0], pa.uint64()),
            "n": pa.array([1_500, None], pa.timestamp("ns")),
            "z": pa.array([1, None], pa.timestamp("us", "Europe/Berlin")),
            "l": pa.array([[[1, 2]], []], pa.list_(pa.list_(pa.uint8(), 2))),
            "m": pa.array([{"a": 1}, None], pa.struct({"a": pa.uint16()})),
        }
    )
    schema = spark_schema(batch.schema)
    found = _in_spark_types(batch, schema)
    assert found.schema == schema
    assert found.to_pydict() == {
        "v": [[1, 2], None],
        "s": ["a", None],
        "k": ["x", "x"],
        "u": [2**32 - 1, None],
        "w": [2**64 - 1, 0],
        "n": [datetime.datetime(1970, 1, 1, 0, 0, 0, 1), None],
        "z": [datetime.datetime(1970, 1, 1, 0, 0, 0, 1, datetime.timezone.utc), None],
        "l": [[[1, 2]], []],
        "m": [{"a": 1}, None],
    }
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

    assert to_arrow_schema(from_arrow_schema(schema), timezone="UTC") == schema


def test_a_type_that_spark_lacks_is_named():
    with pytest.raises(TypeError, match="column x"):
        spark_schema(pa.schema({"x": pa.month_day_nano_interval()}))


def test_rows_are_written_in_the_types_of_the_table():
    target = pa.schema({"v": pa.list_(pa.float32(), 2), "u": pa.uint8()})
    batch = pa.record_batch({"v": pa.array([[1.0, 2.0], None], pa.list_(pa.float64())), "u": pa.array([255, None], pa.int16())})
    assert _in_target_types(batch, target).to_pydict() == {"v": [[1, 2], None], "u": [255, None]}
    for wrong in ({"v": [[1.0]], "u": [1]}, {"v": [[1.0, 2.0]], "u": [256]}):
        with pytest.raises(ValueError, match="does not fit"):
            _in_target_types(pa.record_batch({"v": pa.array(wrong["v"]), "u": pa.array(wrong["u"], pa.int16())}), target)
