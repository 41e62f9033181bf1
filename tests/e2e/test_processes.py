"""Several processes on one local database: the catalog loses nothing, and one name is given once."""

import concurrent.futures

from conftest import Sagitta

PROCESSES = 4
TABLES = 4


def test_processes_that_create_tables_at_once_all_succeed(sagitta):
    sagitta.ok("-c", "CREATE TABLE first (id INT)")

    def create(process: int):
        words = []
        for table in range(TABLES):
            name = f"t_{process}_{table}"
            words += ["-c", f"CREATE TABLE {name} (id INT, emb VECTOR(2))", "-c", f"INSERT INTO {name} VALUES ({process}, '[1,2]')"]
        return sagitta.run(*words)

    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        for done in pool.map(create, range(PROCESSES)):
            assert done.returncode == 0, done.stderr
    names = sagitta.column("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1")
    expected = [f"t_{process}_{table}" for process in range(PROCESSES) for table in range(TABLES)]
    assert names == ["first", *expected]
    for process in range(PROCESSES):
        assert sagitta.column(f"SELECT id FROM t_{process}_0") == [process]


def test_a_new_folder_is_initialised_by_processes_at_once(tmp_path):
    database = Sagitta(str(tmp_path / "fresh"))
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        for done in pool.map(lambda i: database.run("-c", f"CREATE TABLE t{i} (id INT)"), range(PROCESSES)):
            assert done.returncode == 0, done.stderr
    names = database.column("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1")
    assert names == [f"t{i}" for i in range(PROCESSES)]


def test_of_processes_that_create_one_table_one_succeeds(sagitta):
    sagitta.ok("-c", "CREATE TABLE first (id INT)")
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        statement = "CREATE TABLE contested AS SELECT {} AS id"
        results = list(pool.map(lambda i: sagitta.run("-c", statement.format(i)), range(PROCESSES)))
    winners = [i for i, done in enumerate(results) if done.returncode == 0]
    assert len(winners) == 1, [done.stderr for done in results]
    for i, done in enumerate(results):
        assert i in winners or "exist" in done.stderr
    assert sagitta.column("SELECT id FROM contested") == winners


def test_schemas_created_at_once_are_all_there(sagitta):
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        for done in pool.map(lambda i: sagitta.run("-c", f"CREATE SCHEMA s{i}", "-c", f"CREATE TABLE s{i}.t (id INT)"), range(PROCESSES)):
            assert done.returncode == 0, done.stderr
    assert sagitta.column("SELECT table_schema FROM information_schema.tables WHERE table_name = 't' ORDER BY 1") == [
        f"s{i}" for i in range(PROCESSES)
    ]


def test_inserts_of_processes_at_once_are_all_there(sagitta):
    sagitta.ok("-c", "CREATE TABLE t (id INT)")
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        words = lambda i: [word for n in range(5) for word in ("-c", f"INSERT INTO t VALUES ({i * 5 + n})")]
        for done in pool.map(lambda i: sagitta.run(*words(i)), range(PROCESSES)):
            assert done.returncode == 0, done.stderr
    assert sagitta.column("SELECT id FROM t ORDER BY id") == list(range(PROCESSES * 5))
