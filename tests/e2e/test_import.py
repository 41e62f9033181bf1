"""`sagitta import`: every format, several files, vectors found by their constant length, bad files refused whole. Each test
loads into a database of the process, and into one behind a server."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Sagitta
from flight_sql import serving

FRUITS = [("apple", [1, 0]), ("pear", [0, 1]), ("plum", [3, 4]), (None, None)]


@pytest.fixture(params=["embedded", "served"])
def sagitta(request, tmp_path):
    """A database in a folder of this test."""
    data = tmp_path / "data"
    if request.param == "embedded":
        yield Sagitta(str(data))
        return
    with serving(data, tmp_path) as server:
        yield Sagitta(str(data), options=("--connect", server.uri))


@pytest.mark.parametrize(
    "file", ["fruits.parquet", "lists.parquet", "halves.parquet", "fruits.arrow", "stream.arrow", "fruits.jsonl", "fruits.lance"]
)
def test_every_format_gives_the_same_table(sagitta, fixtures, file):
    sagitta.load(fixtures / file, "t")
    rows = sagitta.sql("SELECT id, title, emb FROM t ORDER BY id")
    assert [(row["title"], row["emb"]) for row in rows] == FRUITS
    element = "Float16" if file.startswith("halves") else "Float32"
    assert sagitta.value("SELECT arrow_typeof(emb) FROM t LIMIT 1") == f"FixedSizeList(2 x {element})"
    assert sagitta.column("SELECT id FROM t ORDER BY emb <-> '[1,0]' LIMIT 2") == [1, 2]


def test_csv_columns_get_their_types(sagitta, fixtures):
    sagitta.load(fixtures / "fruits.csv", "t")
    assert sagitta.value("SELECT arrow_typeof(id) FROM t LIMIT 1") == "Int64"
    assert [row["title"] for row in sagitta.sql("SELECT title FROM t ORDER BY id LIMIT 3")] == ["apple", "pear", "plum"]
    assert sagitta.column("SELECT id FROM t WHERE id < 4 ORDER BY emb::VECTOR(2) <-> '[3,4]' LIMIT 1") == [3]


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int8, np.uint8])
def test_an_npy_file_is_a_table_of_vectors(sagitta, tmp_path, kind):
    vectors = np.arange(40).reshape(10, 4).astype(kind)
    np.save(tmp_path / "v.npy", vectors)
    sagitta.load(tmp_path / "v.npy", "v")
    table = sagitta.table("SELECT * FROM v")
    (column,) = [name for name in table.column_names if pa.types.is_fixed_size_list(table.schema.field(name).type)]
    assert sagitta.value("SELECT count(*) FROM v") == 10
    np.testing.assert_array_equal(np.array(table[column].to_pylist(), np.float64), vectors.astype(np.float64))
    (nearest,) = sagitta.sql(f"SELECT {column} AS v FROM v ORDER BY {column} <-> '[8, 9, 10, 11]' LIMIT 1")
    assert nearest["v"] == [8, 9, 10, 11]


def test_a_glob_and_a_folder_load_every_file_in_order_of_name(sagitta, tmp_path):
    parts = tmp_path / "parts"
    (parts / "deeper").mkdir(parents=True)
    for part, name in enumerate(["a.parquet", "b.parquet", "deeper/c.parquet"]):
        ids = pa.array(range(part * 10, part * 10 + 10), pa.int64())
        emb = pa.FixedSizeListArray.from_arrays(pa.array([float(i) for i in range(20)], pa.float32()), 2)
        pq.write_table(pa.table({"id": ids, "emb": emb}), parts / name)
    sagitta.load(parts / "*.parquet", "globbed")
    assert sagitta.column("SELECT id FROM globbed ORDER BY id") == list(range(20))
    sagitta.load(parts, "foldered")
    assert sagitta.column("SELECT id FROM foldered ORDER BY id") == list(range(30))
    # Each part holds the same vectors: ties come in the order of the files.
    assert sagitta.column("SELECT id FROM globbed ORDER BY emb <-> '[0, 1]' LIMIT 2") == [0, 10]
    sagitta.ok("import", str(parts / "a.parquet"), str(parts / "b.parquet"), "--table", "named")
    assert sagitta.column("SELECT id FROM named ORDER BY id") == list(range(20))


def test_lists_become_vectors_only_if_their_length_is_constant_over_the_whole_input(sagitta, tmp_path, fixtures):
    sagitta.load(fixtures / "ragged.parquet", "ragged")
    assert "List" in (kind := sagitta.value("SELECT arrow_typeof(emb) FROM ragged LIMIT 1")) and "Fixed" not in kind
    # The one list that differs is the last of many, in the last of three files.
    for part in range(3):
        rows = [[1.0, 2.0, 3.0]] * 5_000
        if part == 2:
            rows[-1] = [1.0, 2.0]
        pq.write_table(pa.table({"emb": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / f"late{part}.parquet")
    sagitta.load(tmp_path / "late[01].parquet", "constant")
    assert sagitta.value("SELECT arrow_typeof(emb) FROM constant LIMIT 1") == "FixedSizeList(3 x Float32)"
    sagitta.load(tmp_path / "late*.parquet", "late")
    kind = sagitta.value("SELECT arrow_typeof(emb) FROM late LIMIT 1")
    assert "List" in kind and "Fixed" not in kind
    assert sagitta.value("SELECT count(*) FROM late") == 15_000


def test_json_lists_of_one_length_become_vectors(sagitta, tmp_path):
    with open(tmp_path / "docs.jsonl", "w") as file:
        for i in range(1_000):
            file.write(json.dumps({"id": i, "emb": [i, 0.5, -1]}) + "\n")
    sagitta.load(tmp_path / "docs.jsonl", "docs")
    assert sagitta.value("SELECT arrow_typeof(emb) FROM docs LIMIT 1") == "FixedSizeList(3 x Float32)"
    assert sagitta.column("SELECT id FROM docs ORDER BY emb <-> '[500, 0.5, -1]' LIMIT 1") == [500]


def test_create_append_and_replace(sagitta, fixtures):
    file = str(fixtures / "fruits.parquet")
    sagitta.load(file, "t")
    assert "t" in sagitta.refuses("import", file, "--table", "t")
    sagitta.load(file, "t", "--append")
    assert sagitta.value("SELECT count(*) FROM t") == 8
    sagitta.load(file, "t", "--replace")
    assert sagitta.value("SELECT count(*) FROM t") == 4
    assert "missing" in sagitta.refuses("import", file, "--table", "missing", "--append")
    assert "nolab" in sagitta.refuses("import", file, "--table", "nolab.t")
    sagitta.ok("-c", "CREATE SCHEMA lab")
    sagitta.load(file, "lab.t")
    assert sagitta.value("SELECT count(*) FROM lab.t") == 4


def test_a_broken_file_changes_nothing(sagitta, fixtures, tmp_path):
    error = sagitta.refuses("import", str(fixtures / "broken.parquet"), "--table", "t")
    assert "broken.parquet" in error
    assert "t" not in sagitta.column("SELECT table_name FROM information_schema.tables")
    # Whole files before the broken one do not count either.
    shutil.copy(fixtures / "fruits.parquet", tmp_path / "a.parquet")
    shutil.copy(fixtures / "broken.parquet", tmp_path / "b.parquet")
    sagitta.load(fixtures / "fruits.parquet", "t")
    for mode in ("--append", "--replace"):
        assert ".parquet" in sagitta.refuses("import", str(tmp_path / "*.parquet"), "--table", "t", mode)
        assert sagitta.value("SELECT count(*) FROM t") == 4


@pytest.mark.parametrize(
    "name, content, part",
    [
        ("rows.csv", "id,name\n1,a\n2\n", "rows.csv"),
        ("rows.jsonl", '{"id": 1}\n{"id": \n', "rows.jsonl"),
        ("rows.npy", "not numpy", "rows.npy"),
        ("rows.arrow", "not arrow", "rows.arrow"),
        ("rows.xyz", "what is this", "rows.xyz"),
        ("empty.parquet", "", "empty.parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(sagitta, tmp_path, name, content, part):
    (tmp_path / name).write_text(content)
    assert part in sagitta.refuses("import", str(tmp_path / name), "--table", "t")
    assert "t" not in sagitta.column("SELECT table_name FROM information_schema.tables")


def test_what_is_not_there_is_named(sagitta, tmp_path):
    assert "nothing.parquet" in sagitta.refuses("import", str(tmp_path / "nothing.parquet"), "--table", "t")
    assert "*.parquet" in sagitta.refuses("import", str(tmp_path / "*.parquet"), "--table", "t")


def test_files_of_different_shapes_are_refused(sagitta, tmp_path):
    pq.write_table(pa.table({"id": [1], "name": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["one"], "other": [2]}), tmp_path / "b.parquet")
    error = sagitta.refuses("import", str(tmp_path / "*.parquet"), "--table", "t")
    assert "b.parquet" in error or "id" in error or "other" in error


def test_nan_in_a_file_is_refused(sagitta, tmp_path):
    np.save(tmp_path / "v.npy", np.array([[1, 2], [3, np.nan]], np.float32))
    assert "nan" in sagitta.refuses("import", str(tmp_path / "v.npy"), "--table", "t").lower()


def test_import_runs_in_bounded_memory(sagitta, tmp_path):
    """2.4 GB of vectors pass through a process whose peak is well below that, and does not grow with them."""
    rows, dimensions, parts = 50_000, 500, 24
    values = np.random.default_rng(3).random(rows * dimensions, np.float32)
    table = pa.table({"emb": pa.FixedSizeListArray.from_arrays(pa.array(values), dimensions)})
    pq.write_table(table, tmp_path / "0.parquet", compression="none", row_group_size=10_000, use_dictionary=False)
    for part in range(1, parts):
        os.link(tmp_path / "0.parquet", tmp_path / f"{part}.parquet")
    process = sagitta.start("import", str(tmp_path / "*.parquet"), "--table", "t")
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert sagitta.value("SELECT count(*) FROM t") == rows * parts
    bytes_loaded = values.nbytes * parts
    shutil.rmtree(sagitta.data)
    assert usage.ru_maxrss * 1024 < bytes_loaded * 2 / 3, f"peak was {usage.ru_maxrss / 1024:.0f} MB"
