"""Names, constants and kinds of statements."""

import datetime
import decimal
import uuid

import numpy as np
import pytest

from sagitta import Relation, _sql
from sagitta._connection import condition_of, search_sql


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("docs", '"docs"'),
        ("Docs", '"Docs"'),
        ('a"b', '"a""b"'),
        ('"', '""""'),
        ("select", '"select"'),
        ("ü ñ;--", '"ü ñ;--"'),
    ],
)
def test_names_are_quoted(name, sql):
    assert _sql.identifier(name) == sql


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_some_names_cannot_be(name):
    with pytest.raises(ValueError, match="name"):
        _sql.identifier(name)


@pytest.mark.parametrize(
    ("value", "sql"),
    [
        (None, "NULL"),
        (True, "TRUE"),
        (np.bool_(False), "FALSE"),
        (5, "5"),
        (np.int32(-7), "-7"),
        (1.5, "1.5"),
        (1e300, "1e+300"),
        (float("nan"), "CAST('nan' AS DOUBLE)"),
        (float("-inf"), "CAST('-inf' AS DOUBLE)"),
        ("it's", "'it''s'"),
        ("'; DROP TABLE docs; --", "'''; DROP TABLE docs; --'"),
        ("back\\", "'back\\'"),
        (b"\x00\xff", "X'00ff'"),
        (decimal.Decimal("-12.340"), "CAST('-12.340' AS DECIMAL(5, 3))"),
        (decimal.Decimal("1E+3"), "CAST('1000' AS DECIMAL(4, 0))"),
        (decimal.Decimal("0.001"), "CAST('0.001' AS DECIMAL(3, 3))"),
        (datetime.date(2026, 1, 2), "DATE '2026-01-02'"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 6), "TIMESTAMP '2026-01-02 03:04:05.000006'"),
        (
            datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
            "TIMESTAMPTZ '2026-01-02 01:00:00+00:00'",
        ),
        (uuid.UUID(int=1), "'00000000-0000-0000-0000-000000000001'"),
    ],
)
def test_values_become_constants(value, sql):
    assert _sql.literal(value) == sql


@pytest.mark.parametrize("value", [object(), [1], {}, decimal.Decimal("NaN"), decimal.Decimal("1E+40")])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError):
        _sql.literal(value)


@pytest.mark.parametrize(
    ("table", "schema", "sql"),
    [
        ("docs", None, '"docs"'),
        ("docs", "lab", '"lab"."docs"'),
        ("lab.docs", None, '"lab"."docs"'),
        ("sagitta.lab.docs", None, '"lab"."docs"'),
        ("lab.docs", "lab", '"lab"."docs"'),
        (("lab", "a.b"), None, '"lab"."a.b"'),
        (("a.b",), None, '"a.b"'),
        (Relation("lab", "a.b", "VIEW"), None, '"lab"."a.b"'),
        ('x"; DROP TABLE y', None, '"x""; DROP TABLE y"'),
    ],
)
def test_names_of_tables(table, schema, sql):
    assert _sql.qualified(table, schema) == sql


@pytest.mark.parametrize(
    ("table", "schema"), [("", None), ("a..b", None), ("a.b.c", None), ("lab.docs", "other"), ((), None), ((1,), None)]
)
def test_what_is_no_name_of_a_table(table, schema):
    with pytest.raises(ValueError, match="table"):
        _sql.qualified(table, schema)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1", True),
        ("  -- insert\n/* update /* delete */ */ select 1", True),
        ("WITH a AS (SELECT 1) SELECT * FROM a", True),
        ("VALUES (1)", True),
        ("SHOW exact", True),
        ("EXPLAIN DELETE FROM t", True),
        ("VACUUM t DRY RUN", True),
        ("CHECK TABLE t", True),
        ("(SELECT 1)", True),
        ("", True),
        ("INSERT INTO t VALUES (1)", False),
        ("insert into t values ('returning', \"returning\") -- returning", False),
        ("INSERT INTO t VALUES (1) RETURNING id", True),
        ("/* x */ UPDATE t SET a = $$ RETURNING $$", False),
        ("DELETE FROM t WHERE a = E'it\\'s returning'", False),
        ("MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE RETURNING *", True),
        ("CREATE TABLE t (id INT)", False),
        ("SET exact = on", False),
        ("COPY t TO 'x'", False),
        ("TRUNCATE t", False),
    ],
)
def test_which_statements_answer_with_rows(sql, rows):
    assert _sql.returns_rows(sql) is rows


def test_a_statement_of_any_length_is_read_quickly():
    long = "INSERT INTO t VALUES (" + "'x', " * 200_000 + "1)"
    assert not _sql.returns_rows(long)
    assert _sql.returns_rows("SELECT '" + "x" * 1_000_000)


@pytest.mark.parametrize(
    ("sql", "changes"),
    [("SELECT 1", False), ("SET exact = on", False), ("insert into t select 1", True), ("DROP TABLE t", True)],
)
def test_which_statements_change_something(sql, changes):
    assert _sql.changes(sql) is changes


def test_a_search_quotes_everything():
    sql = search_sql(("lab", 'd"o'), "e'mb", 5, ["id", 'a"b', "_distance"], "tenant = 7 AND lang = 'de'", "l2")
    assert sql == (
        """SELECT "id", "a""b", "_distance" FROM vector_search('"lab"."d""o"', 'e''mb', $1, k => 5, """
        """filter => 'tenant = 7 AND lang = ''de''', metric => 'l2')"""
    )
    assert search_sql(("t",), "e") == """SELECT * FROM vector_search('"t"', 'e', $1, k => 10)"""


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "many"])
def test_k_is_a_whole_number_above_0(k):
    with pytest.raises(ValueError, match=r"k is a whole|invalid literal"):
        search_sql(("t",), "e", k)


@pytest.mark.parametrize(
    ("values", "sql"),
    [
        ({"tenant": 7, "lang": "d'e"}, "\"tenant\" = 7 AND \"lang\" = 'd''e'"),
        ({"deleted": None}, '"deleted" IS NULL'),
        ({"lang": ["de", "en"]}, "(\"lang\" IN ('de', 'en'))"),
        ({"lang": ["de", None]}, '("lang" IN (\'de\') OR "lang" IS NULL)'),
        ({"lang": []}, "FALSE"),
        ({}, "TRUE"),
    ],
)
def test_a_filter_of_values(values, sql):
    assert condition_of(values) == sql


def test_columns_are_a_list():
    with pytest.raises(TypeError, match="list"):
        _sql.columns("id")
