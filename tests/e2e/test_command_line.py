"""Statements from the command line, files and standard input: order, status, formats, pipes."""

import csv
import io
import json
import os
import subprocess

import pyarrow as pa
import pytest
from conftest import binary

ROWS = "VALUES (1, 'a \"b\", c', 0.5), (2, NULL, NULL), (3, '', -1.25)"
SELECT = f"SELECT column1 AS id, column2 AS text, column3 AS x FROM ({ROWS}) AS t ORDER BY id"


@pytest.fixture(scope="module")
def nowhere():
    """A database in memory: these tests store nothing."""

    def run(*arguments: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [binary(), "--data", "memory:", *arguments],
            input=text if text is not None else "", capture_output=True, encoding="utf-8", timeout=60,
            env={**os.environ, **environment},
        )

    return run


def test_commands_and_files_run_in_the_order_given(nowhere, tmp_path):
    script = tmp_path / "two.sql"
    script.write_text("\ufeffSELECT 2; -- done\n")
    done = nowhere("--format", "csv", "-c", "SELECT 1", "-f", str(script), "-c", "SELECT 3; SELECT 4;")
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["1", "2", "3", "4"]
    assert done.returncode == 0


def test_standard_input_is_read_when_it_is_no_terminal(nowhere):
    for arguments in ((), ("-f", "-")):
        done = nowhere("--format", "jsonl", *arguments, text="SELECT 1 AS a;\nSELECT 2 AS a")
        assert [json.loads(line) for line in done.stdout.splitlines()] == [{"a": 1}, {"a": 2}]
    assert nowhere(text="").returncode == 0


def test_the_first_failure_ends_the_run_with_status_1(nowhere):
    done = nowhere("--format", "csv", "-c", "SELECT 1; SELECT absent; SELECT 3", "-c", "SELECT 4")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 2, "the first answer and no other"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ") and "absent" in lines[0]
    assert lines[2].index("^") == lines[1].index("absent")


def test_a_mistake_of_syntax_anywhere_runs_nothing(nowhere):
    done = nowhere("-c", "SELECT 1; SELEC 2")
    assert done.returncode == 1 and done.stdout == ""


def test_an_error_in_a_file_names_file_and_line(nowhere, tmp_path):
    script = tmp_path / "report.sql"
    script.write_text("SELECT 1 AS absent;\n\nSELECT 2,\n\tabsent;\n")
    done = nowhere("-f", str(script))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[1].startswith(f"{script}, line 4: "), done.stderr
    assert lines[2].index("^") == lines[1].index("absent")


@pytest.mark.parametrize(
    "arguments, part",
    [
        (("--format", "xml", "-c", "SELECT 1"), "xml"),
        (("--memory-limit", "little"), "little"),
        (("--storage-option", "nothing"), "key=value"),
        (("import", "x.csv"), "--table"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_wrong_usage_has_status_2_and_names_the_value(nowhere, arguments, part):
    done = nowhere(*arguments)
    assert done.returncode == 2 and part in done.stderr and done.stdout == ""


def test_help_and_version_are_printed(nowhere):
    assert "Examples:" in nowhere("--help").stdout
    assert "--replace" in nowhere("import", "--help").stdout
    assert nowhere("--version").stdout.startswith("sagitta ")


def test_missing_files_are_named(nowhere, tmp_path):
    done = nowhere("-f", str(tmp_path / "absent.sql"))
    assert done.returncode == 1 and "absent.sql" in done.stderr


def test_csv_and_tsv_are_read_back(nowhere):
    for name, separator in (("csv", ","), ("tsv", "\t")):
        done = nowhere("--format", name, "-c", SELECT)
        rows = list(csv.reader(io.StringIO(done.stdout), delimiter=separator))
        assert rows == [["id", "text", "x"], ["1", 'a "b", c', "0.5"], ["2", "", ""], ["3", "", "-1.25"]]
        assert f'3{separator}""{separator}' in done.stdout, "an empty text is not NULL"


def test_json_holds_null_and_whole_vectors(nowhere):
    expected = [{"id": 1, "text": 'a "b", c', "x": 0.5}, {"id": 2, "text": None, "x": None}, {"id": 3, "text": "", "x": -1.25}]
    assert json.loads(nowhere("--format", "json", "-c", SELECT).stdout) == expected
    lines = nowhere("--format", "jsonl", "-c", SELECT).stdout.splitlines()
    assert [json.loads(line) for line in lines] == expected
    vector = "[" + ",".join(str(i / 4) for i in range(100)) + "]"
    row = json.loads(nowhere("--format", "json", "-c", f"SELECT '{vector}'::VECTOR(100) AS v").stdout)[0]
    assert row["v"] == [i / 4 for i in range(100)]


def test_arrow_keeps_the_types(loaded):
    table = loaded.table("SELECT id, name, released, embedding FROM packages ORDER BY id LIMIT 3")
    assert table.num_rows == 3
    vectors = table.schema.field("embedding").type
    assert pa.types.is_fixed_size_list(vectors) and vectors.list_size == 384
    assert table.schema.field("released").type == pa.date32()
    assert loaded.table("SELECT id FROM packages WHERE false").num_rows == 0


def test_markdown_and_vertical_are_for_people(nowhere):
    assert "| --: | -------- | ----: |" in nowhere("--format", "markdown", "-c", SELECT).stdout
    vertical = nowhere("--format", "vertical", "-c", SELECT).stdout
    assert "─[ row 3 ]─" in vertical and "(3 rows)" in vertical


def test_quiet_prints_rows_alone(nowhere):
    loud = nowhere("-c", "CREATE TABLE t (id INT); SELECT 1 AS a").stdout
    assert "CREATE TABLE" in loud and "(1 row)" in loud
    quiet = nowhere("--quiet", "-c", "CREATE TABLE t (id INT); SELECT 1 AS a").stdout
    assert "CREATE TABLE" not in quiet and "(1 row)" not in quiet and "│ 1 │" in quiet


def test_echo_shows_comments_and_statements_before_their_answers(nowhere):
    done = nowhere("--echo", text="-- the first\nSELECT 1 AS a;\nSELECT 2\n  AS b;")
    first, second = done.stdout.index("sagitta> SELECT 1 AS a;"), done.stdout.index("sagitta> SELECT 2\n      ->   AS b;")
    assert done.stdout.startswith("-- the first\n") and first < done.stdout.index("│ a │") < second < done.stdout.index("│ b │")


def test_plans_are_not_cut(nowhere):
    plan = nowhere("-c", "EXPLAIN SELECT count(*) FROM (VALUES (1), (2)) AS t(a) WHERE a > 1").stdout
    assert "…" not in plan and "Aggregate" in plan


def test_a_closed_pipe_ends_it_quietly(nowhere):
    many = "SELECT a.column1 FROM " + " CROSS JOIN ".join(
        f"(VALUES {', '.join(f'({i})' for i in range(60))}) AS {name}" for name in "abcd"
    )
    for name in ("csv", "table", "jsonl"):
        process = subprocess.Popen(
            [binary(), "--data", "memory:", "--format", name, "-c", many],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(timeout=60) == 141
        assert err == "", err


def test_answers_are_not_coloured_in_pipes(nowhere):
    done = nowhere("-c", "SELECT NULL AS x; SELECT absent")
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x1b" in nowhere("--color", "always", "-c", "SELECT NULL AS x").stdout


def test_the_folder_comes_from_the_environment(tmp_path):
    environment = {**os.environ, "SAGITTA_DATA": str(tmp_path / "here")}
    subprocess.run([binary(), "-c", "CREATE TABLE t (id INT)"], env=environment, check=True, timeout=60)
    assert (tmp_path / "here").is_dir()
