"""The writer is killed (`kill -9`) at random moments of every kind of write; what it had acknowledged is all there.

After each kill the database is opened again and compared with a model in full: it holds what the last acknowledged
statement left, or that and the one statement that was in flight, whole. Tagged versions are compared too.
`KILLS` (50 if absent) and `KILL_SEED` choose the run; the journal beside the database says what was acknowledged.
"""

import json
import os
import pathlib
import random
import time

from conftest import Sagitta
from ledger import ANSWER, KINDS, TABLE, Ledger, State, Statement, creation, rows_differ

KILLS = int(os.environ.get("KILLS", "50"))
SEED = int(os.environ.get("KILL_SEED", "20261122"))
# A new database now and then: the history that each look reads stays short.
KILLS_PER_DATABASE = 10
# How long a statement is thought to take before one of its kind was timed, and a process to give its first answer.
STATEMENT_SECONDS, START_SECONDS = 0.02, 0.25
# The kill comes within so many times of what the statement in flight takes.
DELAY_FACTOR = 1.5


def test_kills_lose_nothing_double_nothing_and_raise_nothing(tmp_path, capsys):
    choose = random.Random(SEED)
    figures = {"acknowledged": 0, "in flight and there": 0, "in flight and not there": 0, "nothing in flight": 0}
    run, kinds = None, []
    for kill in range(KILLS):
        if kill % KILLS_PER_DATABASE == 0:
            folder = tmp_path / f"database{kill // KILLS_PER_DATABASE}"
            run = Run(folder, choose.randrange(2**32))
        kinds = kinds or choose.sample(KINDS, len(KINDS))
        outcome = run.round(kill, kinds.pop(), choose)
        for name, count in outcome.items():
            figures[name] += count
    with capsys.disabled():
        print(f"\nkill: seed {SEED}, {KILLS} kills, " + ", ".join(f"{name}: {count}" for name, count in figures.items()))


class Run:
    """A database, what it must hold, and the journal."""

    def __init__(self, folder: pathlib.Path, seed: int):
        folder.mkdir()
        self.folder = folder
        self.sagitta = Sagitta(str(folder / "data"))
        self.ledger = Ledger(seed, folder)
        self.journal = (folder / "journal.jsonl").open("a")
        self.seconds: dict[str, float] = {}
        self.place = f"KILL_SEED={SEED}, {folder.name}"
        self.sagitta.ok("-c", creation())

    def note(self, **entry) -> None:
        self.journal.write(json.dumps(entry) + "\n")
        self.journal.flush()

    def round(self, kill: int, kind: str, choose: random.Random) -> dict[str, int]:
        """One writer from its start to its death, and the look at what it left."""
        before = self.ledger.state
        others = [name for name in KINDS if name != "import"]
        first = [self.ledger.make(choose.choice(others)) for _ in range(choose.randrange(12))]
        target = self.ledger.make(kind)
        if kind == "import":
            statements = [*first, target]
            self.write(kill, first, len(first), None)
            acknowledged = len(first) + self.import_file(kill, target, choose.random())
        else:
            # What follows may be in flight too when the kill comes late.
            statements = [*first, target, *(self.ledger.make(choose.choice(others)) for _ in range(3))]
            acknowledged = self.write(kill, statements, len(first), choose.random())
        states = [before, *(statement.after for statement in statements)]
        found = self.look(states[acknowledged : acknowledged + 2], [statement.sql for statement in statements[:acknowledged + 1]])
        self.ledger.state = states[acknowledged + found]
        self.note(kill=kill, acknowledged=acknowledged, in_flight_is_there=bool(found))
        is_all = acknowledged == len(statements)
        name = "nothing in flight" if is_all else "in flight and there" if found else "in flight and not there"
        return {"acknowledged": acknowledged, name: 1}

    def timed(self, kind: str, seconds: float) -> None:
        """Notes how long something took; a later time counts as much as all before it."""
        self.seconds[kind] = (self.seconds.get(kind, seconds) + seconds) / 2

    def delay(self, kind: str, share: float) -> float:
        """A moment while a statement of this kind runs, or shortly after."""
        expected = self.seconds.get(kind, START_SECONDS if kind == "start" else STATEMENT_SECONDS)
        return share * DELAY_FACTOR * expected

    def write(self, kill: int, statements: list[Statement], awaited: int, share: float | None) -> int:
        """Starts a writer and kills it while the statement after its answer number `awaited` runs; how many it gave.

        `share` says how far that statement is to be. Without it the writer ends by itself.
        """
        if not statements:
            return 0
        script = self.folder / "script.sql"
        script.write_text("".join(statement.sql + ";\n" for statement in statements))
        process = self.sagitta.start("-f", str(script))
        answers, last = [], time.perf_counter()
        if share is not None:
            while len(answers) < awaited and (line := process.stdout.readline()):
                if self.answer(kill, line, statements, answers):
                    now = time.perf_counter()
                    self.timed(statements[len(answers) - 1].kind if len(answers) > 1 else "start", now - last)
                    last = now
            # The kill of a process that has not answered comes while it starts, at times before it has opened anything.
            time.sleep(self.delay(statements[awaited].kind if awaited else "start", share))
            process.kill()
        for line in process.stdout:
            self.answer(kill, line, statements, answers)
        errors = process.stderr.read().decode()
        process.wait()
        if share is None:
            assert process.returncode == 0, f"{self.place}: {errors}"
        assert "error:" not in errors, f"{self.place}: {errors}\nafter {len(answers)} of {[s.sql for s in statements]}"
        return len(answers)

    def answer(self, kill: int, line: bytes, statements: list[Statement], answers: list[str]) -> bool:
        """Journals a line if it is the answer of a statement, and checks its count; whether it is."""
        line = line.decode().rstrip("\n")
        match = ANSWER.match(line)
        if not match:
            return False
        statement = statements[len(answers)]
        answers.append(line)
        self.note(kill=kill, sql=statement.sql, answer=line)
        if statement.count is not None:
            assert match[2] == str(statement.count), f"{self.place}: {line}, expected {statement.count}: {statement.sql}"
        return True

    def import_file(self, kill: int, statement: Statement, share: float) -> int:
        """Kills an import on its way; 1 if it said before that it was done."""
        process = self.sagitta.start("import", str(statement.source), "--table", TABLE, "--append")
        time.sleep(self.delay("start", share) + self.delay("copy", share))
        process.kill()
        out, errors = process.communicate()
        is_done = f"imported {statement.count} rows" in out.decode()
        assert is_done or process.returncode == -9, f"{self.place}: {errors.decode()}"
        self.note(kill=kill, sql=statement.sql, answer=out.decode())
        return int(is_done)

    def look(self, states: list[State], statements: list[str]) -> int:
        """Opens the database: which of the states, of one or two, it holds."""
        found = self.read(states)
        problems = []
        # A statement that changes nothing leaves what was there: the later state is as good.
        for at in reversed(range(len(states))):
            problem = difference(states[at], found)
            if problem is None:
                return at
            problems.append(f"  against the state {'with' if at else 'without'} the statement in flight: {problem}")
        tail = "\n  ".join(sql[:300] for sql in statements[-5:])
        raise AssertionError(f"{self.place}: the database holds neither state\n" + "\n".join(problems) + f"\n  last:\n  {tail}")

    def read(self, states: list[State]) -> dict[str, list[dict]]:
        """All rows, the columns, the tags, and what those tags name that exist for certain."""
        certain = set.intersection(*(set(state.tags) for state in states))
        queries = {
            "rows": f"SELECT * FROM {TABLE}",
            "columns": f"SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{TABLE}'",
            "tags": f"SELECT array_to_string(tags, ' ') AS tags FROM table_history('{TABLE}')",
            **{f"tag {tag}": f"SELECT * FROM {TABLE} FOR VERSION AS OF '{tag}'" for tag in sorted(certain)},
        }
        words = [f"SELECT '{name}' AS what_follows; {query}" for name, query in queries.items()]
        found, rows = {}, None
        for row in self.sagitta.sql(*words):
            if "what_follows" in row:
                rows = found.setdefault(row["what_follows"], [])
            else:
                rows.append(row)
        return found


def difference(state: State, found: dict[str, list[dict]]) -> str | None:
    """The first thing in which the database differs from a state, in words."""
    columns = {row["column_name"] for row in found["columns"]}
    if columns != set(state.columns):
        return f"columns {sorted(columns)}, expected {sorted(state.columns)}"
    tags = {tag for row in found["tags"] for tag in (row["tags"] or "").split()}
    if tags != set(state.tags):
        return f"tags {sorted(tags)}, expected {sorted(state.tags)}"
    wanted = {"rows": state.rows, **{f"tag {tag}": rows for tag, (_, rows) in state.tags.items()}}
    for name, expected in wanted.items():
        if name in found and (problem := rows_differ(expected, found[name])):
            return f"{name}: {problem}"
    return None
