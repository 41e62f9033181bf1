"""Standard SQL on a known yardstick: the 22 queries of TPC-H at scale factor 0.1 over our tables, and DuckDB's answers."""

import datetime
import decimal
import os
import subprocess
import sys

import duckdb
import pytest
from conftest import ROOT, Sagitta

SCALE_FACTOR = "0.1"
TABLES = ("region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem")
QUERIES = sorted((ROOT / "sql/tpch").glob("q*.sql"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tpch")
    generator = os.path.join(os.path.dirname(sys.executable), "tpchgen-cli")
    subprocess.run([generator, "parquet", "-s", SCALE_FACTOR, "--output-dir", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def database(tmp_path_factory, files) -> Sagitta:
    database = Sagitta(str(tmp_path_factory.mktemp("tpch-data") / "data"))
    for table in TABLES:
        database.load(files / f"{table}.parquet", table)
    return database


@pytest.fixture(scope="module")
def duck(files):
    connection = duckdb.connect()
    for table in TABLES:
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM '{files}/{table}.parquet'")
    return connection


def plain(value):
    """Numbers as floats (the mean of decimals is a decimal of six digits here, a double there), dates as dates."""
    if isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, datetime.datetime):
        return value.date()
    return value


def test_there_are_22_queries():
    assert len(QUERIES) == 22


def test_every_table_has_all_its_rows(database, duck):
    for table in TABLES:
        expected = duck.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        assert database.value(f"SELECT count(*) FROM {table}") == expected > 0


@pytest.mark.parametrize("query", QUERIES, ids=lambda path: path.stem)
def test_the_answer_is_that_of_duckdb(database, duck, query):
    expected = duck.execute(query.read_text()).fetchall()
    found = [tuple(row.values()) for row in database.table(query.read_text()).to_pylist()]
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected):
        assert len(ours) == len(theirs)
        for left, right in zip(map(plain, ours), map(plain, theirs)):
            if isinstance(left, float):
                assert left == pytest.approx(right, rel=1e-6, abs=1e-6), (ours, theirs)
            else:
                assert left == right, (ours, theirs)
