"""Power losses: what was not synced is dropped, at every point of a recorded history; nothing acknowledged is lost.

`power/recorder.c` writes down what the binary does to its files while it runs a list of statements (`power/workload.py`),
and when it acknowledges each. `power/disk.py` plays that back up to a point and says which files survive a loss of power
there: in the strictest case nothing that was not synced, in another whatever a seed draws, torn writes included. Each
surviving folder is opened by a new process, which must find what the last acknowledged statement left, or that and the
one statement in flight, whole (`power/recovery.py`); then it is written to.

`POWER_SEED` chooses the statements and what is drawn. `POWER_STATES` (150 if absent) is how many points are looked at
beside those of the acknowledgements; `all` looks at every one, in both cases, and kills at every name.
"""

import dataclasses
import os
import pathlib
import random
import shutil
import subprocess
import sys

import pytest
from conftest import Sagitta
from ledger import ANSWER
from power.disk import Disk, on_disk
from power.history import Record, Recorder, answers, build
from power.losses import Loss, Run, described, losses, made, not_durable, play, problem_of, report
from power.recovery import find
from power.workload import PAST, PAST_SECONDS, Step, Workload, script

SEED = int(os.environ.get("POWER_SEED", "20261122"))
STATES = os.environ.get("POWER_STATES", "150")
STATES_COUNT = None if STATES == "all" else int(STATES)
# Folders, and other names, behind whose making a process is killed, if not all.
KILLS = 3


@pytest.fixture(scope="module")
def recorder_library(tmp_path_factory) -> pathlib.Path:
    return build(tmp_path_factory.mktemp("recorder"))


def recorder_at(folder: pathlib.Path, library: pathlib.Path) -> Recorder:
    (folder / "root").mkdir(parents=True)
    return Recorder(library, folder / "root", folder / "log")


def sit(recorder: Recorder, steps: list[Step], **how: int) -> subprocess.CompletedProcess:
    """Runs statements in a process that is watched."""
    file = recorder.root.parent / "script.sql"
    file.write_text(script(steps))
    return Sagitta(str(recorder.root / "data"), recorder.environment(**how)).run("-f", str(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory, recorder_library) -> Run:
    folder = tmp_path_factory.mktemp("power")
    workload = Workload(SEED, folder)
    recorder = recorder_at(folder / "recorded", recorder_library)
    for steps, clock_seconds in ((workload.past, PAST_SECONDS), (workload.today, 0)):
        done = sit(recorder, steps, clock_seconds=clock_seconds)
        assert done.returncode == 0, f"POWER_SEED={SEED}: {done.stderr}\n{done.stdout.decode()}"
    history = recorder.history()
    run = Run(SEED, recorder.root, history, workload.steps, answers(history, ANSWER))
    assert len(run.acknowledged_at) == len(workload.steps), "not every statement has its answer"
    assert run.disk(len(history)).now() == on_disk(recorder.root), "the recorder missed a change: replay and folder differ"
    return run


def test_a_power_loss_at_any_point_loses_nothing_acknowledged(run, tmp_path, capsys):
    failures, figures = play(run, losses(run, STATES_COUNT), tmp_path)
    with capsys.disabled():
        print(f"\npower: seed {SEED}, {len(run.acknowledged_at)} statements, {len(run.history)} records, {figures}")
    assert not failures, report(run, failures)


@pytest.mark.parametrize("dropped", ["all", "of files", "of folders", "after the first"])
def test_the_replay_finds_what_a_program_that_does_not_sync_loses(run, tmp_path, dropped):
    folders = {os.stat(run.root).st_ino} | {record.inode for record in run.history if record.kind == "d"}
    first, last = run.acknowledged_at[PAST.split().index("insert") - 1], run.acknowledged_at[PAST.split().index("insert")]
    is_dropped = {
        "all": lambda at, inode: True,
        "of files": lambda at, inode: inode not in folders,
        "of folders": lambda at, inode: inode in folders,
        "after the first": lambda at, inode: at > first,
    }[dropped]
    kept = [
        record._replace(kind="-") if record.kind == "s" and is_dropped(at, record.inode) else record
        for at, record in enumerate(run.history, 1)
    ]
    failures, _ = play(dataclasses.replace(run, history=kept), [Loss(last, False)], tmp_path)
    ((_, problem),) = failures
    if dropped == "after the first":
        assert "rows lost" in problem


def test_the_replay_knows_what_a_sync_makes_durable(recorder_library, tmp_path):
    recorder = recorder_at(tmp_path, recorder_library)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, **recorder.environment()}
    words = [sys.executable, str(program)]
    subprocess.run(words, cwd=recorder.root, env=environment, stdout=subprocess.DEVNULL, check=True)
    history = recorder.history()
    assert [record.second for record in history if record.kind == "a"] == [b"1\n", b"2\n", b"3\n"]
    disk, at_answer = Disk(recorder.root), []
    for record in history:
        disk.apply(record)
        if record.kind == "a":
            tree = disk.survivors()
            at_answer.append({path: disk.contents[digest] if digest else None for path, digest in tree.items()})
    # Names come with the sync of their folder, contents with that of their file.
    assert at_answer[0] == {}
    assert at_answer[1] == {"f": None, "f/synced": b"one", "f/unsynced": b"", "f/linked": b"one"}
    assert at_answer[2] == {"f": None, "f/unsynced": b"\0\0two", "f/linked": b"one", "moved": b"cu"}
    assert disk.now() == on_disk(recorder.root)
    drawn = [disk.survivors(random.Random(seed)) for seed in range(50)]
    assert {"f/late" in tree for tree in drawn} == {True, False}


# What a program may do; after each print the test knows what survives.
PROGRAM = """
import os, shutil
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
os.mkdir("f")
synced = os.open("f/synced", os.O_CREAT | os.O_WRONLY)
os.write(synced, b"one")
os.fsync(synced)
os.write(1, b"1\\n")
unsynced = os.open("f/unsynced", os.O_CREAT | os.O_WRONLY)
os.pwrite(unsynced, b"two", 2)
os.link("f/synced", "f/linked")
sync("f")
sync(".")
os.write(1, b"2\\n")
os.fdatasync(unsynced)
os.unlink("f/synced")
with open("f/cut", "wb") as file:
    file.write(b"c")
    file.flush()
    os.writev(file.fileno(), [b"u", b"t"])
    os.ftruncate(file.fileno(), 2)
    os.fsync(file.fileno())
os.rename("f/cut", "moved")
sync("f")
sync(".")
os.unlink("f/linked")
os.mkdir("f/gone")
open("f/gone/x", "w").close()
shutil.rmtree("f/gone")
shutil.copyfile("moved", "f/late")
os.write(1, b"3\\n")
"""


def test_a_kill_and_then_a_power_loss_lose_nothing_acknowledged(run, recorder_library, tmp_path, capsys):
    """A process that is killed leaves names that were not synced; the next ones find them there and build on them. What
    is found of the statement that was in flight counts as acknowledged once a process has read it.
    """
    names = [record for record in run.history[: run.acknowledged_at[len(PAST.split()) - 1]] if record.kind in "dlr"]
    numbers, failures = kill_numbers(names), []
    for number in numbers:
        folder = tmp_path / f"kill{number}"
        killed, first = run_with_kill(folder, recorder_library, number)
        later = [at for at in killed.acknowledged_at if at > first]
        # Where everything is durable there is nothing to lose.
        looked_at = {at for at in later if not_durable(killed.disk(at))} | {later[-1]}
        lost, _ = play(killed, [Loss(at, False) for at in looked_at], folder)
        if lost:
            failures.append(f"killed at name {number}, after {described(killed.history[first - 1])}:\n{report(killed, lost)}")
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\npower: seed {SEED}, {len(numbers)} kills after one of {len(names)} names")
    assert not failures, f"{len(failures)} kills\n" + "\n".join(failures)


def kill_numbers(names: list[Record]) -> list[int]:
    """Which names are the last that a process makes: folders, and files that are found by listing or guessing."""
    if STATES_COUNT is None:
        return list(range(1, len(names) + 1))
    folders = [number for number, record in enumerate(names, 1) if record.kind == "d"]
    found = [number for number, record in enumerate(names, 1) if record.kind == "l" and b"/_crc/" not in record.second]
    choose = random.Random(SEED)
    return sorted(choose.sample(folders, KILLS) + choose.sample(found, KILLS))


def run_with_kill(folder: pathlib.Path, library: pathlib.Path, number: int) -> tuple[Run, int]:
    """A process that is killed, one that goes on where it was, and how many records are of the first."""
    place = f"POWER_SEED={SEED}, killed at name {number}"
    recorder = recorder_at(folder, library)
    workload = Workload(SEED, folder)
    done = sit(recorder, workload.past, clock_seconds=PAST_SECONDS, kill_at=number)
    assert done.returncode == -9, f"{place}: {done.returncode} {done.stderr}"
    history = recorder.history()
    before = answers(history, ANSWER)
    run = Run(SEED, recorder.root, history, workload.steps, before)
    disk, expected = run.disk(len(history)), run.expected(len(history))
    disk.build(disk.now(), folder / "copy")
    tables = Sagitta(str(folder / "copy" / "data")).sql("SELECT table_schema, table_name FROM system.tables")
    names = [f"{table['table_schema']}.{table['table_name']}" for table in tables]
    looks = [word for name in names for word in ("-c", f"SELECT tags FROM table_history('{name}')")]
    found = find(folder / "copy" / "data", expected)
    assert (problem := problem_of(found, expected)) is None, f"{place}: {problem}"
    # The statement in flight may be there: then somebody is shown it, and the second process goes on behind it.
    is_in_flight_there = problem_of(found, expected[:1]) is not None
    seen = Sagitta(str(recorder.root / "data"), recorder.environment()).run(*looks or ["-c", "SHOW TABLES"])
    assert seen.returncode == 0, f"{place}: {seen.stderr}"
    shown = len(recorder.history())
    rest = workload.steps[len(before) + is_in_flight_there :]
    done = sit(recorder, rest)
    assert done.returncode == 0, f"{place}: {done.stderr}"
    both = recorder.history()
    after = answers(both[shown:], ANSWER)
    assert len(after) == len(rest)
    acknowledged_at = [shown] * is_in_flight_there + [shown + at for at in after]
    leftovers = made(history[before[-1] if before else 0 :])
    return Run(SEED, recorder.root, both, workload.steps, before + acknowledged_at, leftovers), len(history)
