"""The shell as a person meets it: in a pseudo-terminal, key by key."""

import os
import re
import signal
import subprocess
import time

import pexpect
import pytest
from conftest import ROOT, binary

SECONDS_MAX = 30
COMPLETION_SECONDS_MAX = 5
PROMPT = "sagitta> "
CONTINUATION = "      -> "
TAB, CTRL_C, CTRL_D, UP, ENTER = "\t", "\x03", "\x04", "\x1b[A", "\r"
# Needs a billion rows and cannot be answered from statistics: whoever waits for it gives up.
ENDLESS = "SELECT count(*) FROM numbers AS a CROSS JOIN numbers AS b WHERE (a.n * b.n) % 7 = 3;"


def plain(text: str) -> str:
    """What remains on the paper of a printing terminal: no colours, no cursor movements."""
    return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])", "", text).replace("\r", "")


class Shell:
    """A running shell. What it prints is compared without colours, unless a test asks for them."""

    def __init__(self, data, state, *arguments: str, columns: int = 140, **environment: str):
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "SAGITTA_DATA")}
        self.child = pexpect.spawn(
            binary(),
            ["--data", str(data), *arguments],
            env={**inherited, "TERM": "xterm-256color", "XDG_STATE_HOME": str(state), **environment},
            dimensions=(40, columns),
            encoding="utf-8",
            timeout=SECONDS_MAX,
        )
        self.child.delaybeforesend = None

    def wait_for_prompt(self) -> str:
        """What was printed until the shell waits for input, as it came."""
        self.child.expect(r"\x1b\[\?2004h.*?sagitta> [^\n]*?\x1b\[9C")
        return self.child.before

    def paste(self, text: str) -> None:
        """Types a text at once, as terminals do with pasted text."""
        self.child.send(f"\x1b[200~{text}\x1b[201~")

    def raw(self, text: str) -> str:
        """Runs a text and returns what it printed, codes included."""
        self.paste(text)
        self.child.send(ENTER)
        # Bracketed paste is switched off when the line has been accepted: the answer follows.
        self.child.expect_exact("\x1b[?2004l")
        return self.wait_for_prompt()

    def run(self, text: str) -> str:
        return plain(self.raw(text))

    def complete(self, typed: str) -> str:
        """The line as the tab key leaves it; it is dropped then.

        The vocabulary is read in the background: until it has come, tab changes nothing, so it is pressed again.
        """
        shown, deadline = typed, time.monotonic() + COMPLETION_SECONDS_MAX
        while shown == typed and time.monotonic() < deadline:
            self.child.send(typed + TAB + CTRL_C)
            self.child.expect_exact("\x1b[?2004l")
            shown = plain(self.child.before).replace("\x07", "").rsplit(PROMPT, 1)[1].strip("\n")
            self.wait_for_prompt()
        return shown

    def leave(self) -> int:
        self.child.send(CTRL_D)
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture(scope="module")
def database(loaded, tmp_path_factory):
    """The shipped packages, and a table of numbers for statements that take long."""
    numbers = tmp_path_factory.mktemp("numbers") / "numbers.csv"
    numbers.write_text("n\n" + "".join(f"{n}\n" for n in range(200_000)))
    loaded.load(numbers, "numbers", "--replace")
    return loaded


@pytest.fixture
def shell(database, tmp_path):
    started = Shell(database.data, tmp_path)
    started.banner = plain(started.wait_for_prompt())
    yield started
    started.child.close(force=True)


def test_the_banner_says_version_and_place(shell, database):
    assert re.search(r"sagitta \d+\.\d+\.\d+", shell.banner)
    assert os.path.basename(database.data) in shell.banner
    assert r"\?" in shell.banner


def test_ctrl_d_leaves_with_success(shell):
    assert shell.leave() == 0


@pytest.mark.parametrize("word", ["\\q", "quit", "exit;"])
def test_words_leave_with_success(shell, word):
    shell.paste(word)
    shell.child.send(ENTER)
    shell.child.expect(pexpect.EOF)
    shell.child.close()
    assert shell.child.exitstatus == 0


def test_an_answer_is_a_table_with_a_row_count(shell):
    answer = shell.run("SELECT 1 AS one, NULL AS nothing, 'ü' AS text;")
    assert "│ one │ nothing │ text │" in answer
    assert "│   1 │ NULL    │ ü    │" in answer
    assert "(1 row)" in answer


def test_a_statement_may_take_several_lines(shell):
    shell.child.send("SELECT 40")
    shell.child.send(ENTER)
    shell.child.expect_exact(CONTINUATION)
    shell.child.send("+ 2")
    shell.child.send(ENTER)
    shell.child.expect_exact(CONTINUATION)
    shell.child.send("AS answer;")
    shell.child.send(ENTER)
    assert "│     42 │" in plain(shell.wait_for_prompt())


def test_lines_of_a_text_keep_their_blanks(shell):
    shell.child.send("SELECT length('a")
    shell.child.send(ENTER)
    shell.child.send("b') AS three;")
    shell.child.send(ENTER)
    shell.child.expect_exact("\x1b[?2004l")
    assert "│     3 │" in plain(shell.wait_for_prompt())


def test_several_statements_on_one_line_run_in_order(shell):
    answer = shell.run("SELECT 1 AS a; SELECT 2 AS b;")
    assert answer.index("│ a │") < answer.index("│ b │")


def test_the_history_outlives_the_shell(database, tmp_path):
    first = Shell(database.data, tmp_path)
    first.wait_for_prompt()
    first.run("SELECT 'remember me' AS x;")
    assert first.leave() == 0
    kept = tmp_path / "sagitta" / "history"
    assert kept.stat().st_mode & 0o777 == 0o600

    second = Shell(database.data, tmp_path)
    second.wait_for_prompt()
    second.child.send(UP)
    second.child.expect_exact("remember me")
    second.child.send(ENTER)
    second.child.expect_exact("│ remember me │")
    second.child.close(force=True)


def test_several_lines_come_back_from_the_history_as_one_statement(shell):
    shell.child.send("SELECT 6")
    shell.child.send(ENTER)
    shell.child.expect_exact(CONTINUATION)
    shell.child.send("* 7 AS x;")
    shell.child.send(ENTER)
    shell.child.expect_exact("│ 42 │")
    shell.wait_for_prompt()
    shell.child.send(UP)
    shell.child.send(ENTER)
    shell.child.expect_exact("│ 42 │")


@pytest.mark.parametrize(
    "typed, completed",
    [
        ("SELECT name FROM pack", "packages"),
        ("SELECT download_r", "download_rank"),
        ("SELECT packages.summ", "packages.summary"),
        ("SELECT cosine_dis", "cosine_distance("),
        ("selec", "select "),
        ("SET recall", "recall_target "),
        ("SELECT * FROM system.tab", "system.tables"),
        ("\\d wis", "wishes"),
        ("\\timi", "\\timing "),
        ("\\format v", "vertical"),
        ("SELECT * FROM packages AS p WHERE p.summ", "p.summary"),
    ],
)
def test_tab_completes(shell, typed, completed):
    start = typed.rfind(" ") + 1
    assert shell.complete(typed) == typed[:start] + completed


def test_tab_offers_nothing_where_nothing_fits(shell):
    assert shell.complete("SELECT * FROM pack") == "SELECT * FROM packages"
    assert shell.complete("SELECT 'pack") == "SELECT 'pack"


def test_a_new_table_is_offered(database, tmp_path):
    shell = Shell(database.data, tmp_path)
    shell.wait_for_prompt()
    shell.run("CREATE TABLE zebra_crossings (id BIGINT, stripes INT);")
    assert shell.complete("SELECT * FROM zeb") == "SELECT * FROM zebra_crossings"
    shell.run("DROP TABLE zebra_crossings;")
    shell.child.close(force=True)


def test_what_is_typed_has_colours(shell):
    shell.child.send("SELECT 'text', 12 -- note")
    shell.child.expect_exact("\x1b[1;34mSELECT\x1b[0m \x1b[32m'text'\x1b[0m, \x1b[36m12\x1b[0m \x1b[90m-- note\x1b[0m")


def test_no_colour_is_shown_when_none_is_wanted(database, tmp_path):
    shell = Shell(database.data, tmp_path, NO_COLOR="1")
    shell.wait_for_prompt()
    shown = shell.raw("SELECT nothing_such;") + shell.raw("SELECT NULL AS x;")
    assert "error:" in shown and "NULL" in shown
    assert not re.search(r"\x1b\[[0-9;]*m", shown), repr(shown)
    shell.child.close(force=True)


def test_tables_are_listed_and_described(shell):
    tables = shell.run("\\dt")
    assert re.search(r"│ public +│ packages +│", tables) and re.search(r"│ public +│ wishes +│", tables)
    assert "packages" not in shell.run("\\dt wi*")
    described = shell.run("\\d packages")
    assert re.search(r"│ summary +│", described)
    assert re.search(r"│ embedding +│ VECTOR\(384, FLOAT16\) +│", described), described
    missing = shell.run("\\d package")
    assert "there is no table or view package" in missing and "did you mean packages?" in missing


def test_views_schemas_functions_and_settings_are_listed(shell):
    shell.run("CREATE VIEW recent AS SELECT name FROM packages WHERE released >= DATE '2026-01-01';")
    assert "recent" in shell.run("\\dv")
    assert "recent" not in shell.run("\\dt")
    shell.run("DROP VIEW recent;")
    schemas = shell.run("\\dn")
    assert "public" in schemas and "information_schema" in schemas
    assert "cosine_distance" in shell.run("\\df cos*")
    assert "recall_target" in shell.run("\\set")


def test_timing_is_switched(shell):
    assert "timing is on" in shell.run("\\timing")
    assert re.search(r"time: [\d.]+ m?s", shell.run("SELECT 1;"))
    assert "timing is off" in shell.run("\\timing")
    assert "time:" not in shell.run("SELECT 1;")


def test_formats_are_chosen(shell):
    shell.run("\\x")
    assert "─[ row 1 ]─" in shell.run("SELECT 1 AS one;")
    shell.run("\\format csv")
    assert "one,two\n1,\n" in shell.run("SELECT 1 AS one, NULL AS two;")
    assert "there is no format xml" in shell.run("\\format xml")
    shell.run("\\format table")
    assert "│   1 │" in shell.run("SELECT 1 AS one;")


def test_help_lists_the_commands(shell):
    text = shell.run("\\?")
    for command in ("\\d", "\\dt", "\\timing", "\\format", "\\o", "\\i", "Ctrl-C"):
        assert command in text
    assert "did you mean \\timing?" in shell.run("\\time")


def test_files_are_run_and_answers_written(shell, tmp_path):
    script = tmp_path / "two.sql"
    script.write_text("SELECT 11 AS a;\n-- a note\nSELECT 22 AS b;\n")
    answer = shell.run(f"\\i {script}")
    assert "│ 11 │" in answer and "│ 22 │" in answer
    assert "cannot read" in shell.run(f"\\i {tmp_path}/absent.sql")

    out = tmp_path / "out.csv"
    shell.run("\\format csv")
    shell.run(f"\\o {out}")
    assert "33" not in shell.run("SELECT 33 AS c;")
    shell.run("\\o")
    assert out.read_text() == "c\n33\n"
    assert "44" in shell.run("SELECT 44 AS d;")


def test_lines_that_are_typed_ahead_are_run(shell):
    shell.child.send(f"SELECT 61 AS a;{ENTER}SELECT 62 AS b;{ENTER}SELECT 63 AS c;{ENTER}")
    for answer in ("│ 61 │", "│ 62 │", "│ 63 │"):
        shell.child.expect_exact(answer)


def test_ctrl_c_drops_the_line(shell):
    shell.child.send("SELECT nonsense" + CTRL_C)
    shell.wait_for_prompt()
    shell.child.send("SELECT 5 AS five;" + ENTER)
    shell.child.expect_exact("│    5 │")


def test_ctrl_c_cancels_a_statement_and_the_shell_lives_on(shell):
    shell.paste(ENDLESS)
    shell.child.send(ENTER)
    shell.child.expect_exact("Ctrl-C cancels")
    shell.child.send(CTRL_C)
    shell.child.expect_exact("cancelled")
    shell.wait_for_prompt()
    assert "│ 10000 │" in shell.run("SELECT count(*) AS rows_loaded FROM packages;").replace("       ", " ")


def test_a_long_statement_shows_that_it_runs_and_leaves_no_trace(shell):
    shell.paste(ENDLESS)
    shell.child.send(ENTER)
    # It appears after half a second, and moves on.
    shell.child.expect(r"0\.[5-9] s, Ctrl-C cancels")
    shell.child.expect(r"([1-9]\.\d) s, Ctrl-C cancels")
    shell.child.send(CTRL_C)
    shell.child.expect_exact("cancelled")
    assert shell.child.before.endswith("\x1b[2K"), "the line is wiped before anything else is printed"


def test_no_progress_is_shown_when_none_is_wanted(database, tmp_path):
    shell = Shell(database.data, tmp_path, "--no-progress")
    shell.wait_for_prompt()
    shell.paste(ENDLESS)
    shell.child.send(ENTER)
    with pytest.raises(pexpect.TIMEOUT):
        shell.child.expect_exact("Ctrl-C cancels", timeout=1.5)
    shell.child.send(CTRL_C)
    shell.child.expect_exact("cancelled")
    shell.child.close(force=True)


def test_an_error_points_at_its_place_and_offers_the_name(shell):
    shown = shell.run("SELECT name,\n  sumary\nFROM packages;")
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert "sumary" in lines[start]
    pointed = next(i for i, line in enumerate(lines) if line.startswith("line 2: "))
    assert lines[pointed].endswith("  sumary")
    assert lines[pointed + 1].index("^") == lines[pointed].index("sumary")
    assert lines[pointed + 1].count("^") == len("sumary")
    assert re.search(r'hint: did you mean .*summary', shown), shown


@pytest.mark.parametrize(
    "statement, marked, meant",
    [
        ("SELECT * FROM pakages;", "pakages", "packages"),
        ("SELECT cosine_distnce(embedding, embedding) FROM packages;", "cosine_distnce", "cosine_distance"),
        ("SELEC 1;", "SELEC", None),
        ("SELECT 1 FROM packages WHERE;", ";", None),
    ],
)
def test_errors_point_at_tables_functions_and_syntax(shell, statement, marked, meant):
    lines = shell.run(statement).splitlines()
    shown = "\n".join(lines)
    carets = [i for i, line in enumerate(lines) if re.fullmatch(r" *\^+", line)]
    assert carets, shown
    place = lines[carets[0]].index("^")
    assert lines[carets[0] - 1][place:].startswith(marked), shown
    if meant:
        assert meant in shown.split("hint:")[1], shown


def test_after_an_error_the_rest_of_the_line_is_not_run(shell):
    shown = shell.run("SELECT 1 AS a; SELECT absent; SELECT 3 AS c;")
    assert "│ a │" in shown and "error:" in shown and "│ c │" not in shown


def test_long_vectors_are_shortened(shell):
    shown = shell.run("SELECT name, embedding FROM packages LIMIT 2;")
    assert len(re.findall(r"\[-?[\d.e-]+, -?[\d.e-]+, -?[\d.e-]+, … 384\]", shown)) == 2, shown
    shell.run("\\format jsonl")
    assert shell.run("SELECT embedding FROM packages LIMIT 1;").count(",") == 383


def test_an_import_shows_a_bar(database, tmp_path):
    path = str(tmp_path / "data")
    child = pexpect.spawn(
        binary(),
        ["import", str(ROOT / "examples/packages.parquet"), "--table", "packages", "--data", path],
        env={**os.environ, "TERM": "xterm-256color"}, dimensions=(40, 120), encoding="utf-8", timeout=SECONDS_MAX,
    )
    child.expect(r"imported 10000 rows into packages in [\d.]+ m?s")
    assert re.search(r"rows/s", plain(child.before)), repr(child.before)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_an_interrupt_ends_a_batch_with_status_130(database):
    process = database.start("-c", ENDLESS)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 130 and "cancelled" in err.decode()
