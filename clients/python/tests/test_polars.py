"""Tables as lazy frames: whatever is pushed to the server, the answer is that of the whole table in memory."""

import datetime
import random

import numpy as np
import pyarrow as pa
import pytest

polars = pytest.importorskip("polars")

import sagitta.polars as sagitta_polars

col = polars.col
ROWS = 3_000


def table() -> pa.Table:
    rng = np.random.default_rng(7)
    doubles = rng.normal(size=ROWS)
    # The values that engines order differently.
    doubles[:8] = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 5e-324, -5e-324]
    at = [datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=i % 500, microseconds=i) for i in range(ROWS)]
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "i": pa.array([None if i % 11 == 0 else i % 7 - 3 for i in range(ROWS)], pa.int32()),
            "s": [None if i % 13 == 0 else ["", "a", "A", "ä", "b", "it's", "%", "\\"][i % 8] for i in range(ROWS)],
            "f": pa.array([None if i % 17 == 16 else float(doubles[i]) for i in range(ROWS)], pa.float64()),
            "g": pa.array(doubles.astype(np.float32)),
            "b": [None if i % 5 == 0 else i % 2 == 0 for i in range(ROWS)],
            "d": [datetime.date(2020, 1, 1) + datetime.timedelta(days=i % 60) for i in range(ROWS)],
            "t": pa.array(at, pa.timestamp("us")),
            "emb": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=ROWS * 2).astype(np.float32)), 2),
        }
    )


@pytest.fixture(scope="module")
def place(uri):
    """The table on the server: address, schema, name."""
    import sagitta

    with sagitta.connect(uri) as connection:
        connection.execute("DROP SCHEMA IF EXISTS polars_tests CASCADE")
        connection.execute("CREATE SCHEMA polars_tests")
        connection.ingest("polars_tests.t", table())
    yield uri, "polars_tests.t"
    with sagitta.connect(uri) as connection:
        connection.execute("DROP SCHEMA polars_tests CASCADE")


@pytest.fixture(scope="module")
def memory():
    return polars.from_arrow(table())


def conditions(rng: random.Random, depth: int = 3):
    """A condition of random shape, mostly of what can be pushed."""
    if depth and rng.random() < 0.6:
        left, right = conditions(rng, depth - 1), conditions(rng, depth - 1)
        return rng.choice([lambda: left & right, lambda: left | right, lambda: ~left])()
    name = rng.choice(["id", "i", "s", "f", "g", "b", "d", "t"])
    value = {
        "id": lambda: rng.randrange(-5, ROWS + 5),
        "i": lambda: rng.choice([-4, -3, -1, 0, 2, 3]),
        "s": lambda: rng.choice(["", "a", "A", "ä", "it's", "%", "\\", "zz"]),
        "f": lambda: rng.choice([0.0, -0.0, 0.5, -1.25, float("nan"), float("inf"), 1.0, 5e-324]),
        "g": lambda: rng.choice([0.0, -0.0, 0.1, 0.5, -1.25, float("nan"), float("-inf"), 1.0]),
        "b": lambda: rng.random() < 0.5,
        "d": lambda: datetime.date(2020, 1, 1) + datetime.timedelta(days=rng.randrange(-3, 63)),
        "t": lambda: (
            datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=rng.randrange(500), microseconds=rng.randrange(ROWS))
        ),
    }[name]
    kind = rng.randrange(8)
    if kind == 0:
        return col(name).is_null() if rng.random() < 0.5 else col(name).is_not_null()
    if kind == 1:
        values = [value() for _ in range(rng.randrange(1, 5))] + ([None] if rng.random() < 0.3 else [])
        return col(name).is_in(values)
    if kind == 2 and name != "b":
        bounds = polars.lit(value()), polars.lit(value())
        return col(name).is_between(*bounds, closed=rng.choice(["both", "left", "right", "none"]))
    if kind == 5 and name in ("i", "id"):
        return col(name) > 2.5  # Polars converts the column: never pushed.
    if kind == 3 and name == "b":
        return col("b")
    if kind == 4:
        return col("s").str.contains("a")  # Never pushed.
    operators = ["__eq__", "__ne__"] if name == "b" else ["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"]
    return getattr(col(name), rng.choice(operators))(value())


@pytest.mark.parametrize("seed", range(150))
def test_a_filter_gives_what_it_gives_in_memory(connection, place, memory, seed):
    condition = conditions(random.Random(seed))
    found = sagitta_polars.scan(connection, place[1]).filter(condition).collect().sort("id")
    assert found.equals(memory.filter(condition).sort("id")), str(condition)


def test_conditions_are_pushed_at_all(connection, place):
    """The test above would pass if nothing were pushed."""
    fields = {field.name: field for field in connection.schema(place[1])}
    pushed = [sagitta_polars.translate(conditions(random.Random(seed)), fields) for seed in range(150)]
    assert sum(condition is not None for condition in pushed) > 30


def test_columns_come_in_the_order_that_is_asked_for(place, memory):
    frame = sagitta_polars.scan(*place).select("s", "id", "emb").filter(col("id") < 10).collect()
    assert frame.columns == ["s", "id", "emb"]
    assert frame.schema["emb"] == polars.Array(polars.Float32, 2)
    assert frame.sort("id").equals(memory.select("s", "id", "emb").filter(col("id") < 10).sort("id"))


def test_the_first_rows(place):
    assert sagitta_polars.scan(*place).head(7).collect().height == 7
    assert sagitta_polars.scan(*place).head(0).collect().height == 0
    assert sagitta_polars.scan(*place).filter(col("id") >= 100).head(7).collect()["id"].min() >= 100
    assert sagitta_polars.scan(*place).head(50).filter(col("b")).collect().height < 50


def test_counts_and_joins(place, memory):
    frame = sagitta_polars.scan(*place)
    assert frame.select(polars.len()).collect().item() == ROWS
    grouped = frame.group_by("i").agg(polars.len(), col("f").count()).sort("i").collect()
    assert grouped.equals(memory.group_by("i").agg(polars.len(), col("f").count()).sort("i"))
    joined = frame.select("id", "i").join(frame.filter(col("id") < 5).select("i", "s"), on="i").collect()
    assert joined.height == memory.select("id", "i").join(memory.filter(col("id") < 5).select("i", "s"), on="i").height


def test_a_query_is_a_frame(place, memory):
    frame = sagitta_polars.scan_query(place[0], f"SELECT i, count(*) AS n FROM {place[1]} GROUP BY i ORDER BY i; ")
    assert frame.filter(col("n") > 100).collect()["n"].sum() == memory.height


def test_what_is_not_there_fails_when_it_is_named(uri):
    import sagitta

    with pytest.raises(sagitta.Error, match="nowhere"):
        sagitta_polars.scan(uri, "nowhere")
