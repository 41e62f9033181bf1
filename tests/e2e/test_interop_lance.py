"""Tables are plain Lance datasets: Lance's own Python package opens ours, and we attach and search those it made."""

import pathlib

import lance
import numpy as np
import pyarrow as pa
import pytest
from conftest import Sagitta, cosine, text

ROWS = 5_000
DIMENSIONS = 16


def dataset_of(database: Sagitta, rows: int) -> lance.LanceDataset:
    """The dataset of the only table with this many rows."""
    found = [lance.dataset(str(path)) for path in pathlib.Path(database.data).rglob("*.lance") if path.is_dir()]
    (dataset,) = [dataset for dataset in found if dataset.count_rows() == rows]
    return dataset


def test_lance_opens_our_tables_with_every_element_type(sagitta):
    sagitta.ok(
        "-c",
        "CREATE TABLE t (id BIGINT NOT NULL, name TEXT, f VECTOR(2), h VECTOR(2, FLOAT16), i VECTOR(2, INT8),"
        " u VECTOR(2, UINT8), b BITVECTOR(16))",
        "-c",
        "INSERT INTO t VALUES (1, 'a', '[1,2]', '[0.5,2]', '[-1,2]', '[1,200]', '0000000111111111'),"
        " (2, NULL, NULL, NULL, NULL, NULL, NULL)",
        "-c", "INSERT INTO t (id, f) VALUES (3, '[5,6]')",
    )
    dataset = dataset_of(sagitta, 3)
    types = {field.name: field.type for field in dataset.schema}
    assert types["f"] == pa.list_(pa.float32(), 2)
    assert types["h"] == pa.list_(pa.float16(), 2)
    assert types["i"] == pa.list_(pa.int8(), 2)
    assert types["u"] == pa.list_(pa.uint8(), 2)
    assert types["b"] == pa.list_(pa.uint8(), 2)
    assert not dataset.schema.field("id").nullable
    rows = dataset.to_table().to_pylist()
    assert rows[0] == {"id": 1, "name": "a", "f": [1, 2], "h": [0.5, 2], "i": [-1, 2], "u": [1, 200], "b": [1, 255]}
    assert rows[1] == {"id": 2, "name": None, "f": None, "h": None, "i": None, "u": None, "b": None}
    assert rows[2]["f"] == [5, 6]
    assert dataset.to_table(filter="id = 3")["id"].to_pylist() == [3]


def test_lance_finds_the_neighbours_that_we_find(sagitta, tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    sagitta.load(tmp_path / "vectors.npy", "v")
    dataset = dataset_of(sagitta, ROWS)
    (name,) = [field.name for field in dataset.schema if pa.types.is_fixed_size_list(field.type)]
    theirs = dataset.to_table(nearest={"column": name, "q": vectors[7], "k": 10, "metric": "cosine"})
    ours = sagitta.sql(f"SELECT {name}, {name} <=> '{text(vectors[7])}' AS d FROM v ORDER BY d LIMIT 10")
    np.testing.assert_allclose([row["d"] for row in ours], theirs["_distance"].to_numpy(), atol=1e-5)
    np.testing.assert_allclose([row[name] for row in ours], theirs[name].to_pylist(), rtol=1e-6)


@pytest.fixture
def foreign(tmp_path):
    """A dataset that Lance's package made: three appends, deletions, and a scalar index."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
    table = pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "tenant": pa.array(rng.integers(0, 50, ROWS), pa.int32()),
            "emb": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIMENSIONS),
        }
    )
    path = str(tmp_path / "foreign.lance")
    for start in range(0, ROWS, 2_000):
        lance.write_dataset(table.slice(start, 2_000), path, mode="append" if start else "create")
    dataset = lance.dataset(path)
    dataset.delete("id % 7 = 0")
    dataset.create_scalar_index("tenant", "BTREE")
    live = np.arange(ROWS) % 7 != 0
    return path, vectors, table["tenant"].to_numpy(), live


def test_a_foreign_dataset_with_deletions_is_searched_exactly(sagitta, foreign):
    path, vectors, tenants, live = foreign
    sagitta.ok("-c", f"CREATE EXTERNAL TABLE foreign_docs STORED AS LANCE LOCATION '{path}'")
    assert sagitta.value("SELECT count(*) FROM foreign_docs") == live.sum()
    for row in (1, 700, 4_999):  # 700 is deleted: its vector still asks, and is not found
        distances = cosine(vectors.astype(np.float64), vectors[row].astype(np.float64))
        order = np.argsort(distances, kind="stable")
        expected = [i for i in order if live[i]][:10]
        query = text(vectors[row])
        assert sagitta.column(f"SELECT id FROM foreign_docs ORDER BY emb <=> '{query}' LIMIT 10") == expected
        for where, keeps in (
            ("tenant = 7", tenants == 7),
            ("tenant IN (1, 2) AND id > 3000", np.isin(tenants, [1, 2]) & (np.arange(ROWS) > 3000)),
            ("tenant = 99", tenants == 99),
            ("id % 2 = 0", np.arange(ROWS) % 2 == 0),
        ):
            expected = [i for i in order if live[i] and keeps[i]][:10]
            found = sagitta.column(f"SELECT id FROM foreign_docs WHERE {where} ORDER BY emb <=> '{query}' LIMIT 10")
            assert found == expected, where


def test_a_foreign_commit_is_seen_by_the_next_statement(sagitta, foreign):
    path, vectors, _, live = foreign
    sagitta.ok("-c", f"CREATE EXTERNAL TABLE foreign_docs STORED AS LANCE LOCATION '{path}'")
    query = text(vectors[1])
    assert sagitta.column(f"SELECT id FROM foreign_docs ORDER BY emb <-> '{query}' LIMIT 1") == [1]
    lance.dataset(path).delete("id = 1")
    assert sagitta.value("SELECT count(*) FROM foreign_docs") == live.sum() - 1
    assert sagitta.column(f"SELECT id FROM foreign_docs ORDER BY emb <-> '{query}' LIMIT 1") != [1]


def test_a_foreign_commit_to_our_table_is_seen_too(sagitta):
    sagitta.ok("-c", "CREATE TABLE t (id BIGINT, emb VECTOR(2))", "-c", "INSERT INTO t VALUES (1, '[1,0]'), (2, '[0,1]')")
    dataset = dataset_of(sagitta, 2)
    dataset.delete("id = 1")
    assert sagitta.column("SELECT id FROM t ORDER BY emb <-> '[1,0]' LIMIT 5") == [2]
    assert sagitta.value("SELECT count(*) FROM t") == 1


def test_an_attached_dataset_is_not_written_to(sagitta, foreign):
    path, *_ = foreign
    before = lance.dataset(path).version
    sagitta.ok("-c", f"CREATE EXTERNAL TABLE foreign_docs STORED AS LANCE LOCATION '{path}'")
    sagitta.fails("INSERT INTO foreign_docs (id) VALUES (1)")
    sagitta.ok("-c", "DROP TABLE foreign_docs")
    assert lance.dataset(path).version == before


def test_a_foreign_dataset_can_be_imported(sagitta, foreign):
    path, _, _, live = foreign
    sagitta.load(path, "copied")
    assert sagitta.value("SELECT count(*) FROM copied") == live.sum()
    assert sagitta.value("SELECT arrow_typeof(emb) FROM copied LIMIT 1") == f"FixedSizeList({DIMENSIONS} x Float32)"
