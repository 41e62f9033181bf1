"""A backup is a copy of the folder while a writer runs: it opens and holds, for each table, a version that existed while
the copy was made. The files of one listing may be copied in any order; a copy that lists as it goes takes the folders
that name files first.
"""

import pathlib
import random
import re
import shutil
import signal
import subprocess

import pytest
from conftest import Sagitta
from ledger import ANSWER, Ledger, creation, rows_differ

SEED = 20261122
TABLES = ("accounts", "entries")
KINDS = ("insert", "upsert", "update", "delete", "merge", "alter", "tag", "restore", "optimize", "vacuum", "copy")
STATEMENTS = 160
COPIES = 3
# Folders whose files name other files.
NAMING = ("_catalog", "_versions")
# More than the pipe holds: behind each statement the writer waits until its answer is read.
PAD = "SELECT repeat('.', 2000) AS pad;\n"
PIPE_BYTES = 4096


class Writer:
    """A process that runs a list of statements, and how many it has answered: at most one more is done."""

    def __init__(self, sagitta: Sagitta, script: pathlib.Path):
        words = ("--max-column-width", "0", "-f", str(script))
        self.process: subprocess.Popen = sagitta.start(*words, pipesize=PIPE_BYTES)
        self.lines = 0

    @property
    def answered(self) -> int:
        """Statements whose own answer and whose pad's were read."""
        return self.lines // 2

    def await_answers(self, count: int) -> None:
        """Reads until so many more statements are answered, or the process ends."""
        until = self.answered + count
        while self.answered < until and (line := self.process.stdout.readline()):
            self.lines += bool(ANSWER.match(line.decode().rstrip("\n")))

    def end(self) -> None:
        self.await_answers(STATEMENTS + 1)
        errors = self.process.stderr.read().decode()
        assert self.process.wait() == 0, errors
        assert self.answered == STATEMENTS


def files_at_one_moment(folder: pathlib.Path, writer: Writer) -> list[pathlib.Path]:
    """All files of one moment: the writer stands still while they are listed, and goes on while they are copied."""
    writer.process.send_signal(signal.SIGSTOP)
    try:
        return sorted(path for path in folder.rglob("*") if path.is_file())
    finally:
        writer.process.send_signal(signal.SIGCONT)


def copy_files(files: list[pathlib.Path], folder: pathlib.Path, copy: pathlib.Path, writer: Writer, answers: int) -> None:
    """Copies the files in this order while the writer answers so many statements. A file that has gone is not copied."""
    pause = max(1, len(files) // answers)
    for at, path in enumerate(files):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except FileNotFoundError:
            pass
        if at % pause == 0:
            writer.await_answers(1)


def copy_names_first(folder: pathlib.Path, copy: pathlib.Path, writer: Writer) -> None:
    """The catalog, then the manifests of each table: what they name is there and stays there."""
    for part in [folder / "_catalog", *sorted(folder.rglob("_versions"))]:
        copy_files(sorted(part.iterdir()), folder, copy, writer, 3)


def copy_as_it_walks(
    folder: pathlib.Path, copy: pathlib.Path, writer: Writer, is_reversed: bool, skipped: tuple[str, ...] = NAMING
) -> None:
    """What `cp -r` does: each folder is listed when it comes to it. Folders that were copied before are skipped."""
    entries = sorted((entry for entry in folder.iterdir() if entry.name not in skipped), reverse=is_reversed)
    copy.mkdir(parents=True, exist_ok=True)
    copy_files([entry for entry in entries if entry.is_file()], folder, copy, writer, 3)
    for entry in entries:
        if entry.is_dir():
            copy_as_it_walks(entry, copy / entry.name, writer, is_reversed, skipped)


def prepared(folder: pathlib.Path) -> tuple[Sagitta, dict[str, list[dict[int, dict]]], pathlib.Path]:
    """A database with both tables, the rows of each table after each statement of a script, and the script."""
    folder.mkdir()
    sagitta = Sagitta(str(folder / "data"))
    choose = random.Random(SEED)
    ledgers = {table: Ledger(choose.randrange(2**32), folder, table) for table in TABLES}
    sagitta.ok(*[word for table in TABLES for word in ("-c", creation(table))])
    rows = {table: [ledger.state.rows] for table, ledger in ledgers.items()}
    statements = []
    for _ in range(STATEMENTS):
        table = choose.choice(TABLES)
        statements.append(ledgers[table].make(choose.choice(KINDS)).sql + ";\n" + PAD)
        for name, ledger in ledgers.items():
            rows[name].append(ledger.state.rows)
    script = folder / "script.sql"
    script.write_text("".join(statements))
    return sagitta, rows, script


def check(copy: pathlib.Path, rows: dict[str, list[dict[int, dict]]], first: int, last: int) -> None:
    """The copy holds for each table what was there after one of the statements `first` to `last`, and can be written."""
    backup = Sagitta(str(copy))
    for table, versions in rows.items():
        found = backup.sql(f"SELECT * FROM {table}")
        problems = [rows_differ(versions[at], found) for at in range(first, min(last + 1, STATEMENTS) + 1)]
        assert None in problems, f"{copy}, {table}: no version between {first} and {last}: {problems[0]} … {problems[-1]}"
        backup.ok("-c", f"INSERT INTO {table} (id) VALUES (-7)", "-c", f"OPTIMIZE {table}")
        assert backup.value(f"SELECT count(*) FROM {table}") == len(found) + 1
        assert backup.sql(f"SELECT version FROM table_history('{table}')")


@pytest.mark.parametrize("order", ["random", "reverse"])
def test_a_copy_of_all_files_of_one_moment_is_a_backup(tmp_path, order):
    sagitta, rows, script = prepared(tmp_path / "database")
    folder, choose = pathlib.Path(sagitta.data), random.Random(SEED)
    writer, copies = Writer(sagitta, script), []
    for number in range(COPIES):
        writer.await_answers(choose.randrange(3, 20))
        first = writer.answered
        files = files_at_one_moment(folder, writer)
        choose.shuffle(files) if order == "random" else files.reverse()
        copy = tmp_path / f"copy{number}"
        copy_files(files, folder, copy, writer, 40)
        copies.append((copy, first, writer.answered))
    writer.end()
    assert any(last > first for _, first, last in copies), "nothing was written while a copy was made"
    for copy, first, last in copies:
        check(copy, rows, first, last)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_copy_that_lists_while_it_copies_is_a_backup(tmp_path, is_reversed):
    sagitta, rows, script = prepared(tmp_path / "database")
    writer, copies = Writer(sagitta, script), []
    for number in range(COPIES):
        writer.await_answers(10)
        first = writer.answered
        copy = tmp_path / f"copy{number}"
        copy_names_first(pathlib.Path(sagitta.data), copy, writer)
        copy_as_it_walks(pathlib.Path(sagitta.data), copy, writer, is_reversed)
        copies.append((copy, first, writer.answered))
    writer.end()
    assert any(last > first for _, first, last in copies), "nothing was written while a copy was made"
    for copy, first, last in copies:
        check(copy, rows, first, last)


def test_a_copy_that_lists_data_before_what_names_it_says_how_it_becomes_whole(tmp_path):
    sagitta, rows, script = prepared(tmp_path / "database")
    writer, copies = Writer(sagitta, script), []
    for number in range(COPIES):
        writer.await_answers(10)
        copy = tmp_path / f"copy{number}"
        first = writer.answered
        copy_as_it_walks(pathlib.Path(sagitta.data), copy, writer, is_reversed=True, skipped=())
        copies.append((copy, first, writer.answered))
    writer.end()
    mended = 0
    for copy, first, last in copies:
        backup = Sagitta(str(copy))
        for table in TABLES:
            missing = [found for found in backup.sql(f"CHECK TABLE {table}") if found["status"] == "missing"]
            versions = {match[1] for found in missing if (match := re.search(r"RESTORE TABLE … TO VERSION (\d+)", found["detail"]))}
            if missing:
                assert len(versions) == 1, missing
                backup.ok("-c", f"RESTORE TABLE {table} TO VERSION {versions.pop()}")
                mended += 1
        check(copy, rows, first, last)
    assert mended, "no copy was torn: the test shows nothing"
