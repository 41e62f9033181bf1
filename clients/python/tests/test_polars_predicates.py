"""Which conditions of Polars are pushed, and as what. No server is needed."""

import datetime

import pyarrow as pa
import pytest

polars = pytest.importorskip("polars")

from polars.io.plugins import register_io_source

import sagitta.polars as sagitta_polars

col = polars.col
FIELDS = {
    name: pa.field(name, kind)
    for name, kind in {
        "a": pa.int64(),
        "i": pa.int32(),
        "u": pa.uint8(),
        "s": pa.string(),
        "f": pa.float64(),
        "g": pa.float32(),
        "b": pa.bool_(),
        "d": pa.date32(),
        "t": pa.timestamp("us"),
        "n": pa.timestamp("ns"),
        "z": pa.timestamp("us", "UTC"),
        'q"': pa.int64(),
        "v": pa.list_(pa.float32(), 2),
    }.items()
}
SCHEMA = polars.from_arrow(pa.schema(list(FIELDS.values())).empty_table()).schema


def statements(query) -> list[str]:
    """The statements that a query on an empty table would send; Polars converts types on the way."""
    seen = []

    def source(with_columns, predicate, n_rows, batch_size):
        seen.append(sagitta_polars.scan_sql('"t"', FIELDS, with_columns, predicate, n_rows))
        frame = polars.DataFrame(schema=SCHEMA)
        yield frame if with_columns is None else frame.select(with_columns)

    query(register_io_source(source, schema=SCHEMA)).collect()
    return seen


def pushed(predicate) -> str:
    (sql,) = statements(lambda frame: frame.filter(predicate))
    return sql.partition(" WHERE ")[2]


@pytest.mark.parametrize(
    ("predicate", "sql"),
    [
        (col("a") == 1, '("a" = 1)'),
        (polars.lit(3) < col("a"), '("a" > 3)'),
        ((col("i") > 1) & (col("i") < 5), '(("i" > 1) AND ("i" < 5))'),
        (col("s") == "it's", """("s" = 'it''s')"""),
        (col("a").is_null() | col("b"), '(("a" IS NULL) OR ("b" = TRUE))'),
        (col("a").is_not_null(), '("a" IS NOT NULL)'),
        (~col("b"), '(NOT ("b" = TRUE))'),
        (col('q"') == 1, '("q""" = 1)'),
        (col("u") == 255, '("u" = 255)'),
        (col("s").is_in(["a", "b"]), """("s" IN ('a', 'b'))"""),
        (~col("a").is_in([1, 2]), '(NOT ("a" IN (1, 2)))'),
        (col("i").is_between(1, 5, closed="left"), '(("i" >= 1) AND ("i" < 5))'),
        (col("d") >= datetime.date(2020, 1, 2), """("d" >= DATE '2020-01-02')"""),
        (col("t") < datetime.datetime(2020, 1, 2, 3, 4, 5, 6), """("t" < TIMESTAMP '2020-01-02 03:04:05.000006')"""),
        (col("t") > datetime.datetime(9999, 1, 1), """("t" > TIMESTAMP '9999-01-01 00:00:00')"""),
        (col("d") > datetime.date(1, 1, 1), """("d" > DATE '0001-01-01')"""),
        (col("f") == 0.1, '("f" = 0.1)'),
        (col("g") == 0.1, '("g" = 0.10000000149011612)'),
        (col("f") > 1, '("f" > 1.0 OR isnan("f"))'),
        (col("f") <= 1, '("f" <= 1.0)'),
        (~col("f").is_between(0.5, 1.5), '(("f" < 0.5) OR ("f" > 1.5 OR isnan("f")))'),  # Polars turns NOT around.
        # What cannot be pushed is left out of AND.
        ((col("a") < 5) & col("s").str.contains("x"), '(("a" < 5))'),
        ((col("a") < 5) & (col("i") + 1 == 2), '(("a" < 5))'),
    ],
)
def test_what_is_pushed(predicate, sql):
    assert pushed(predicate) == sql


@pytest.mark.parametrize(
    "predicate",
    [
        col("s").str.contains("x"),
        (col("a") < 5) | col("s").str.contains("x"),
        ~((col("a") < 5) & col("s").str.contains("x")),
        col("i") > 2.5,  # Polars converts the column.
        col("a") + 1 == 2,
        col("a") == col("i"),
        col("s").is_in(["a", None]),
        col("a").is_in([]),
        col("a").is_in([1, None], nulls_equal=True),
        col("f") == 0.0,  # Two zeros.
        col("f") >= 0,
        col("f") == float("nan"),
        col("f") > float("inf"),
        col("n") > datetime.datetime(2020, 1, 1),  # Nanoseconds.
        col("z") > datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        col("s") == "nul\0",
        col("a").is_in(list(range(20_000))),
        col("a").sum() > 3,
        col("a").rank() == 1,
    ],
)
def test_what_is_not_pushed(predicate):
    assert pushed(predicate) == ""


def test_columns_and_rows_are_pushed():
    assert statements(lambda t: t.select("i", "a")) == ['SELECT "a", "i" FROM "t"']
    assert statements(lambda t: t.filter(col("a") > 1).select("s")) == ['SELECT "a", "s" FROM "t" WHERE ("a" > 1)']
    assert statements(lambda t: t.select("a").head(3)) == ['SELECT "a" FROM "t" LIMIT 3']
    # The rows are counted before the filter, or after it by Polars: never both by the server.
    assert statements(lambda t: t.select("a").head(3).filter(col("a") > 1)) == ['SELECT "a" FROM "t" LIMIT 3']
    assert statements(lambda t: t.select("a").filter(col("a") > 1).head(3)) == ['SELECT "a" FROM "t" WHERE ("a" > 1)']


def test_a_count_needs_one_column():
    (sql,) = statements(lambda t: t.select(polars.len()))
    assert sql.count(",") == 0


@pytest.mark.parametrize(
    "node", [{}, {"Column": "missing"}, {"BinaryExpr": {"op": "Eq"}}, {"Function": {"function": 5}}, [], None]
)
def test_what_another_version_of_polars_may_write_is_not_pushed(node):
    assert sagitta_polars._condition(node, FIELDS) is None
