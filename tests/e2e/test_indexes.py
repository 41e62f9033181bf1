"""Indexes through the built binary, compared with NumPy over all rows: recall, filters, versions, builds in the background, damage."""

import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Sagitta
from flight_sql import serving

ROWS, DIM, K = 20_000, 24, 10


def clustered(rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(200, DIM))
    return (centers[random.integers(0, 200, rows)] + 0.5 * random.normal(size=(rows, DIM))).astype(np.float32)


VECTORS, QUERIES = clustered(ROWS, 1), clustered(40, 2)
# How far a row lies along one direction: a filter by it is as correlated with a query as can be.
SIDE = np.argsort(np.argsort(VECTORS @ QUERIES[0])).astype(np.int32)


def vectors_of(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), DIM)


@pytest.fixture
def points(tmp_path) -> Sagitta:
    sagitta = Sagitta(str(tmp_path / "data"))
    file = tmp_path / "points.parquet"
    ids = np.arange(ROWS, dtype=np.int64)
    pq.write_table(pa.table({"id": ids, "side": SIDE, "name": [f"n{at}" for at in ids], "emb": vectors_of(VECTORS)}), file)
    sagitta.load(file, "points")
    return sagitta


def literal(vector: np.ndarray) -> str:
    return "'[" + ", ".join(f"{value:.9g}" for value in vector) + "]'"


def recall(sagitta: Sagitta, rows: np.ndarray, where: str = "", table: str = "points") -> float:
    """The share of the true nearest among `rows` that searches find, which must all be as long as they can be."""
    searches = [f"SELECT id FROM {table} {where} ORDER BY emb <-> {literal(query)} LIMIT {K}" for query in QUERIES]
    found = [row["id"] for row in sagitta.sql(*searches)]
    length = min(K, len(rows))
    assert len(found) == length * len(QUERIES)
    hits = 0
    for at, query in enumerate(QUERIES):
        distances = ((VECTORS[rows].astype(np.float64) - query.astype(np.float64)) ** 2).sum(1)
        nearest = set(rows[np.argsort(distances, kind="stable")[:length]].tolist())
        answer = found[at * length : (at + 1) * length]
        assert set(answer) <= set(rows.tolist()), "a row that is dead or does not match"
        assert len(set(answer)) == length
        hits += len(nearest & set(answer))
    return hits / (length * len(QUERIES))


@pytest.mark.parametrize("method", ["graph", "ivf", "ivf_flat", "ivf_sq8", "ivf_pq", "scann", "flat"])
def test_an_index_finds_what_numpy_finds(points, method):
    points.ok("-c", f"CREATE INDEX points_emb ON points USING {method} (emb vector_l2_ops)")
    (index,) = points.sql("SELECT state, rows_covered, segments FROM system.indexes")
    assert index == {"state": "ready", "rows_covered": ROWS, "segments": 1}
    everything = np.arange(ROWS)
    assert recall(points, everything) >= 0.95
    assert f"way=index points_emb ({method})" in points.ok(
        "-c", f"EXPLAIN SELECT id FROM points ORDER BY emb <-> {literal(QUERIES[0])} LIMIT 3"
    ).decode()
    # From nearly all rows to one in a hundred; those near the first query, and those far from it.
    for bound in (18_000, 2_000, 200):
        assert recall(points, everything[SIDE < bound], f"WHERE side < {bound}") >= 0.95, bound
        assert recall(points, everything[SIDE >= ROWS - bound], f"WHERE side >= {ROWS - bound}") >= 0.95, bound
    assert recall(points, everything[:7], "WHERE id < 7") == 1.0


def test_an_index_holds_through_changes_and_at_every_version(points):
    points.ok("-c", "CREATE INDEX points_emb ON points USING graph (emb vector_l2_ops)")
    points.ok("-c", "DELETE FROM points WHERE id % 5 = 0")
    rows = np.arange(ROWS)
    left = rows[rows % 5 > 0]
    assert recall(points, left) >= 0.95
    points.ok("-c", "UPDATE points SET name = 'other' WHERE id % 5 = 1", "-c", "OPTIMIZE points")
    assert recall(points, left) >= 0.95
    assert recall(points, rows, table="points FOR VERSION AS OF 1") >= 0.95
    assert points.value("SELECT count(*) FROM points WHERE name = 'other'") == ROWS // 5
    points.ok("-c", "RESTORE TABLE points TO VERSION 1")
    assert recall(points, rows) >= 0.95


def uncovered(server) -> int:
    (row,) = server.client().rows("SELECT rows_uncovered FROM system.indexes")
    return row["rows_uncovered"]


def until_covered(server, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while uncovered(server) > 0:
        assert time.monotonic() < end, f"{uncovered(server)} rows have no segment"
        time.sleep(0.2)


def test_a_server_builds_what_came_later(points, tmp_path):
    points.ok("-c", "CREATE INDEX points_emb ON points USING ivf (emb vector_l2_ops)")
    with serving(points.data, tmp_path) as server:
        more = VECTORS[:6_000] + np.float32(100)
        file = tmp_path / "more.parquet"
        ids = np.arange(ROWS, ROWS + 6_000, dtype=np.int64)
        side = np.full(6_000, -1, np.int32)
        pq.write_table(pa.table({"id": ids, "side": side, "name": ["new"] * 6_000, "emb": vectors_of(more)}), file)
        remote = Sagitta("", options=("--connect", f"grpc://localhost:{server.port}"))
        remote.load(file, "points", "--append")
        # It is found at once, and after the build.
        search = f"SELECT id FROM points ORDER BY emb <-> {literal(more[17])} LIMIT 1"
        assert remote.value(search) == ROWS + 17
        until_covered(server)
        assert remote.value(search) == ROWS + 17
        assert remote.value("SELECT count(*) FROM system.segments") == 2


def test_a_build_that_was_killed_is_done_by_the_next_server(points, tmp_path):
    build = points.start("-c", "CREATE INDEX points_emb ON points USING graph (emb vector_l2_ops)")
    end = time.monotonic() + 60
    while not list((tmp_path / "data").glob("**/_ann/manifest-" + "[0-9]" * 20)):
        assert time.monotonic() < end and build.poll() is None
        time.sleep(0.002)
    build.send_signal(signal.SIGKILL)
    build.communicate()
    assert points.value("SELECT rows_uncovered FROM system.indexes") in (0, ROWS)
    with serving(points.data, tmp_path) as server:
        until_covered(server)
    assert recall(points, np.arange(ROWS)) >= 0.95


def test_a_damaged_index_costs_time_and_no_answer(points, tmp_path):
    points.ok("-c", "CREATE INDEX points_emb ON points USING graph (emb vector_l2_ops)")
    (segment,) = (tmp_path / "data").glob("**/_ann/*.seg")
    whole = segment.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 4096 + whole[4096:]):
        segment.write_bytes(damaged)
        assert recall(points, np.arange(ROWS)) == 1.0
        search = f"SELECT id FROM points ORDER BY emb <-> {literal(QUERIES[0])} LIMIT {K}"
        *_, index = points.sql(search, "SELECT rows_covered, rows_uncovered, problems FROM system.indexes")
        assert index["problems"] and (index["rows_covered"], index["rows_uncovered"]) == (0, ROWS), index
    points.ok("-c", "REINDEX INDEX points_emb")
    assert recall(points, np.arange(ROWS)) >= 0.95


def append(sagitta: Sagitta, file, start: int, rows: int) -> None:
    ids = np.arange(start, start + rows, dtype=np.int64)
    names = [f"n{at}" for at in ids]
    pq.write_table(pa.table({"id": ids, "side": SIDE[ids], "name": names, "emb": vectors_of(VECTORS[ids])}), file)
    sagitta.load(file, "points", "--append")


@pytest.mark.parametrize("method", ["ivf", "graph"])
def test_small_segments_become_one(tmp_path, method):
    part, parts = ROWS // 4, 4
    sagitta = Sagitta(str(tmp_path / "data"))
    sagitta.ok("-c", f"CREATE TABLE points (id BIGINT, side INT, name TEXT, emb VECTOR({DIM}))")
    sagitta.ok("-c", f"CREATE INDEX points_emb ON points USING {method} (emb vector_l2_ops)")
    with serving(sagitta.data, tmp_path) as server:
        remote = Sagitta("", options=("--connect", f"grpc://localhost:{server.port}"))
        for at in range(parts):
            append(remote, tmp_path / "part.parquet", at * part, part)
            until_covered(server)
        end = time.monotonic() + 60
        while remote.value("SELECT count(*) FROM system.segments") > 1:
            assert time.monotonic() < end, remote.sql("SELECT * FROM system.segments")
            time.sleep(0.2)
        assert recall(remote, np.arange(ROWS)) >= 0.95
        first = np.arange(part)
        assert recall(remote, first, table="points FOR VERSION AS OF 2") >= 0.95


def test_a_damaged_list_of_indexes_is_mended_by_reindex(points, tmp_path):
    points.ok("-c", "CREATE INDEX points_emb ON points USING ivf (emb vector_l2_ops)")
    lists = sorted((tmp_path / "data").glob("**/_ann/manifest-*"))
    lists[-1].write_bytes(lists[-1].read_bytes()[:-9] + b"\xff" * 9)
    assert recall(points, np.arange(ROWS)) == 1.0
    assert "REINDEX TABLE" in points.fails("REINDEX INDEX points_emb ON points")
    points.ok("-c", "REINDEX TABLE points")
    (index,) = points.sql("SELECT index_name, state, rows_covered FROM system.indexes")
    assert index == {"index_name": "points_emb", "state": "ready", "rows_covered": ROWS}
    assert recall(points, np.arange(ROWS)) >= 0.95
