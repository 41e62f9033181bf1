"""Bad input: each with a clear error, the exit status 1, and nothing changed. What SQL alone can show is in sql/*.slt."""

import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from conftest import Sagitta, binary

CASES = [
    # what is wrong, the statement, what the error must name
    ("wrong dimension", "SELECT id FROM t ORDER BY emb <-> '[1,2,3]' LIMIT 1", ["3", "2"]),
    ("wrong dimension on write", "INSERT INTO t VALUES (9, '[1,2,3]')", ["3", "2"]),
    ("NaN", "INSERT INTO t VALUES (9, '[NaN,0]')", ["nan"]),
    ("infinity", "INSERT INTO t VALUES (9, '[Infinity,0]')", ["inf"]),
    ("text that is no vector", "INSERT INTO t VALUES (9, 'hello')", ["hello", "vector"]),
    ("text that is no vector in a search", "SELECT id FROM t ORDER BY emb <-> 'hello' LIMIT 1", ["hello", "vector"]),
    ("unknown table", "SELECT * FROM nowhere", ["nowhere"]),
    ("unknown column", "SELECT missing FROM t", ["missing"]),
    ("unknown function", "SELECT frobnicate(id) FROM t", ["frobnicate"]),
    ("almost a function", "SELECT cosine_distnce(emb, emb) FROM t", ["cosine_distance"]),
    ("almost a column", "SELECT ebm FROM t", ["emb"]),
    ("k of zero", "SELECT * FROM vector_search('t', 'emb', '[1,0]', k => 0)", ["k"]),
    ("negative k", "SELECT * FROM vector_search('t', 'emb', '[1,0]', k => -3)", ["k", "-3"]),
    ("negative limit", "SELECT id FROM t ORDER BY emb <-> '[1,0]' LIMIT -1", ["limit"]),
    ("negative offset", "SELECT id FROM t ORDER BY emb <-> '[1,0]' LIMIT 1 OFFSET -1", ["offset"]),
    ("no SQL", "SELEC 1", ["selec"]),
    ("a delete of some rows", "DELETE FROM t WHERE id IN (SELECT id FROM t) LIMIT 1", ["limit", "delete"]),
    ("a version that is not there", "SELECT * FROM t FOR VERSION AS OF 99", ["version 99", "there are versions"]),
    ("a sample", "SELECT * FROM t TABLESAMPLE SYSTEM (1)", ["tablesample"]),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Sagitta:
    database = Sagitta(str(tmp_path_factory.mktemp("bad") / "data"))
    database.ok("-c", "CREATE TABLE t (id BIGINT NOT NULL, emb VECTOR(2))", "-c", "INSERT INTO t VALUES (1, '[1,0]'), (2, '[0,1]')")
    return database


@pytest.mark.parametrize("_, statement, parts", CASES, ids=[case[0] for case in CASES])
def test_a_bad_statement_says_why_and_changes_nothing(small, _, statement, parts):
    error = small.fails(statement).lower()
    for part in parts:
        assert part in error, f"{part} is not in: {error}"
    assert small.sql("SELECT * FROM t ORDER BY id") == [{"id": 1, "emb": [1, 0]}, {"id": 2, "emb": [0, 1]}]


def test_the_first_failing_statement_ends_the_run(small):
    done = small.run("-c", "SELECT 1 AS before", "-c", "SELECT * FROM nowhere", "-c", "SELECT 2 AS never")
    assert done.returncode == 1
    assert b"before" in done.stdout and b"never" not in done.stdout


def test_the_error_points_at_its_place(small):
    error = small.fails("SELECT id,\n       missing\nFROM t")
    assert "^" in error and "missing" in error


def test_a_folder_that_is_no_database_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"not a database")
    error = Sagitta(str(folder)).fails("SELECT 1")
    assert "photos" in error and "database" in error
    assert [path.name for path in folder.iterdir()] == ["holiday.jpg"]


def test_a_file_is_no_database(tmp_path):
    (tmp_path / "file").write_text("text")
    assert "file" in Sagitta(str(tmp_path / "file")).fails("SELECT 1")


def test_a_folder_without_rights_is_an_error(tmp_path):
    if os.geteuid() == 0:
        path = "/proc/sagitta-data"  # no one can write there
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        path = str(tmp_path / "locked" / "data")
    assert path in Sagitta(path).fails("CREATE TABLE t (id INT)")


def test_a_damaged_table_is_an_error_and_the_others_work(sagitta):
    sagitta.ok("-c", "CREATE TABLE a (id INT)", "-c", "CREATE TABLE b (id INT)", "-c", "INSERT INTO b VALUES (1), (2)")
    sagitta.ok("-c", "INSERT INTO a VALUES (1)")
    files = [path for path in pathlib.Path(sagitta.data).rglob("*.lance") if path.is_file()]
    assert len(files) == 2, "one data file per insert"
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-30])
    assert sagitta.fails("SELECT * FROM a")
    assert sagitta.column("SELECT id FROM b ORDER BY id") == [1, 2]


def test_a_full_disk_is_an_error_and_nothing_is_changed(tmp_path):
    """In a mount namespace of its own, on a file system of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    np.save(tmp_path / "big.npy", np.random.default_rng(5).random((40_000, 64), np.float32))
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mounted = subprocess.run([*unshare, "mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True)
    if shutil.which("unshare") is None or mounted.returncode != 0:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.decode().strip()}")
    script = f"""
        set -u
        mount -t tmpfs -o size=6m tmpfs {disk}
        run() {{ {binary()} --data {disk}/data --no-progress --quiet "$@"; }}
        run -c "CREATE TABLE t (id INT)" -c "INSERT INTO t VALUES (1), (2)" || exit 10
        run import {tmp_path}/big.npy --table big 2> {tmp_path}/error && exit 11
        run --format csv -c "SELECT count(*) AS n FROM t" > {tmp_path}/count || exit 12
        run --format csv -c "SELECT count(*) AS n FROM information_schema.tables WHERE table_name = 'big'" > {tmp_path}/big || exit 13
        run -c "INSERT INTO t VALUES (3)" || exit 14
    """
    done = subprocess.run([*unshare, "bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"step {done.returncode}: {done.stdout}{done.stderr}"
    error = (tmp_path / "error").read_text().lower()
    assert "space" in error or "full" in error, error
    assert "panicked" not in error
    assert (tmp_path / "count").read_text().split() == ["n", "2"]
    assert (tmp_path / "big").read_text().split() == ["n", "0"]


def test_a_statement_over_its_memory_says_so(tmp_path):
    database = Sagitta(str(tmp_path / "data"), options=("--memory-limit", "64M"))
    error = database.fails(
        "SELECT count(*) FROM (SELECT a.value, count(*) FROM generate_series(1, 3000000) a GROUP BY a.value) t"
        " JOIN generate_series(1, 3000000) b ON t.value = b.value"
    )
    assert "memory" in error.lower()
    assert database.value("SELECT 1") == 1
