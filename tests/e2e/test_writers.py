"""Writers of several processes on one table with a primary key: they take turns, and no statement is lost or done twice.

Several sessions in each process are in `writers.rs`, through the library.
"""

import concurrent.futures

import pytest
from conftest import Sagitta

PROCESSES = 3
WRITERS_PER_PROCESS = 2
WRITERS = PROCESSES * WRITERS_PER_PROCESS
STATEMENTS = 12


def at_once(sagitta: Sagitta, scripts: list[list[str]]):
    """Runs each list of statements in a process of its own, all at once."""

    def run(statements: list[str]):
        return sagitta.run(*[word for statement in statements for word in ("-c", statement)])

    with concurrent.futures.ThreadPoolExecutor(len(scripts)) as pool:
        return list(pool.map(run, scripts))


def all_well(results) -> None:
    for done in results:
        assert done.returncode == 0, done.stderr


@pytest.fixture
def table(sagitta) -> Sagitta:
    sagitta.ok("-c", "CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, note TEXT)")
    return sagitta


def check_history(sagitta: Sagitta) -> None:
    """No version is missing, and each is later than the one before."""
    history = sagitta.sql("SELECT version, committed_at FROM table_history('t') ORDER BY version")
    versions, times = [row["version"] for row in history], [row["committed_at"] for row in history]
    assert versions == list(range(versions[0], versions[0] + len(versions)))
    assert times == sorted(set(times))


def test_upserts_of_one_key_leave_one_row(table):
    upsert = "INSERT INTO t VALUES (1, {n}, 'writer {w}') ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = excluded.note"
    all_well(at_once(table, [[upsert.format(w=w, n=n) for n in range(STATEMENTS)] for w in range(WRITERS)]))
    (row,) = table.sql("SELECT * FROM t")
    assert row["id"] == 1 and row["n"] == STATEMENTS - 1, "the last word is the last statement of some writer"
    check_history(table)


def test_counters_sum_up(table):
    table.ok("-c", "INSERT INTO t VALUES (1, 0, 'all'), (2, 0, 'even')")
    scripts = [
        ["UPDATE t SET n = n + 1 WHERE id = 1" if i % 2 else "UPDATE t SET n = n + 1" for i in range(STATEMENTS)]
        for _ in range(WRITERS)
    ]
    all_well(at_once(table, scripts))
    assert table.sql("SELECT id, n FROM t ORDER BY id") == [
        {"id": 1, "n": WRITERS * STATEMENTS},
        {"id": 2, "n": WRITERS * STATEMENTS // 2},
    ]
    check_history(table)


def test_inserts_of_different_keys_all_arrive(table):
    scripts = [[f"INSERT INTO t VALUES ({w * 1000 + n}, {n}, 'writer {w}')" for n in range(STATEMENTS)] for w in range(WRITERS)]
    all_well(at_once(table, scripts))
    expected = [{"id": w * 1000 + n, "n": n, "note": f"writer {w}"} for w in range(WRITERS) for n in range(STATEMENTS)]
    assert table.sql("SELECT * FROM t ORDER BY id") == expected
    check_history(table)


def test_of_inserts_of_one_key_one_wins(table):
    for key in range(41, 46):
        results = at_once(table, [[f"INSERT INTO t VALUES ({key}, {w}, 'writer {w}')"] for w in range(WRITERS)])
        winners = [w for w, done in enumerate(results) if done.returncode == 0]
        assert len(winners) == 1, [done.stderr for done in results]
        for w, done in enumerate(results):
            assert w in winners or (done.returncode == 1 and str(key) in done.stderr and "panicked" not in done.stderr), done.stderr
        assert table.sql(f"SELECT n FROM t WHERE id = {key}") == [{"n": winners[0]}]
    check_history(table)


def test_moves_between_rows_keep_the_sum(table):
    """Each statement reads what it changes: one that was planned on an older version would break the sum."""
    table.ok("-c", "INSERT INTO t SELECT value, 100, 'start' FROM generate_series(0, 9)")
    move = "UPDATE t SET n = CASE WHEN id = {a} THEN n - 7 ELSE n + 7 END WHERE id IN ({a}, {b})"
    scripts = [[move.format(a=(w + n) % 10, b=(w * 3 + n + 5) % 10) for n in range(STATEMENTS) if (w + n) % 10 != (w * 3 + n + 5) % 10] for w in range(WRITERS)]
    all_well(at_once(table, scripts))
    assert table.value("SELECT sum(n) AS total FROM t") == 1000
    assert table.value("SELECT count(*) AS rows FROM t") == 10


def test_maintenance_runs_beside_writers(table):
    table.ok("-c", "INSERT INTO t SELECT value, 0, 'start' FROM generate_series(0, 99)")
    scripts = [["UPDATE t SET n = n + 1 WHERE id % 10 = 3"] * STATEMENTS for _ in range(PROCESSES)]
    scripts.append(["OPTIMIZE t", "VACUUM t"] * 3)
    results = at_once(table, scripts)
    all_well(results)
    assert table.value("SELECT sum(n) AS total FROM t") == 10 * PROCESSES * STATEMENTS
    assert table.value("SELECT count(DISTINCT id) AS rows FROM t") == table.value("SELECT count(*) AS rows FROM t") == 100
