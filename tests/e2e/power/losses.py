"""Losses of power in a recorded run: what survives each, whether it holds what was acknowledged, and what to say if not."""

import bisect
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import re
import shutil

from power.disk import Disk, Tree, identity
from power.history import Record
from power.recovery import Expected, Found, differs, find
from power.workload import Step, World

# Records after which there may be another state, or another promise. What is written does not count until it is synced.
POINTS = frozenset("scdrlua")
# What a staged upload is called until it has its name. One that stays wastes space, and nobody sees it.
STAGED = re.compile(r"#\d+$")
FAILURES_SHOWN_MAX = 3


@dataclasses.dataclass
class Run:
    """What was recorded below `root`, the statements, after how many records each was acknowledged, and the names that
    statements of processes that were killed gave to files.
    """

    seed: int
    root: pathlib.Path
    history: list[Record]
    steps: list[Step]
    acknowledged_at: list[int]
    leftovers: frozenset[str] = frozenset()

    def acknowledged(self, at: int) -> int:
        """How many statements had been acknowledged after so many records."""
        return bisect.bisect_right(self.acknowledged_at, at)

    def expected(self, at: int) -> list[Expected]:
        """One of these survives a loss of power after so many records."""
        done = self.acknowledged(at)
        before, began_at = (self.steps[done - 1].after, self.acknowledged_at[done - 1]) if done else (World(), 0)
        if done == len(self.steps) or (done and began_at == at):
            return [Expected(before, self.leftovers)]
        leftovers = self.leftovers | made(self.history[began_at:at])
        in_flight = self.steps[done]
        return [Expected(before, leftovers, in_flight.sql), Expected(in_flight.after, self.leftovers)]

    def disk(self, at: int) -> Disk:
        disk = Disk(self.root)
        for record in self.history[:at]:
            disk.apply(record)
        return disk


def made(history: list[Record]) -> frozenset[str]:
    """The names that files were given."""
    return frozenset(record.second.decode() for record in history if record.kind in "lr")


@dataclasses.dataclass(frozen=True, order=True)
class Loss:
    """A loss of power after so many records: nothing survives that was not synced, or what is drawn of it."""

    at: int
    is_drawn: bool

    def tree(self, disk: Disk, seed: int) -> Tree:
        return disk.survivors(random.Random(f"{seed} {self.at}") if self.is_drawn else None)


def losses(run: Run, count: int | None) -> list[Loss]:
    """Two at every acknowledgement and `count` others, one in each of as many parts of the history; all, if `None`."""
    points = [at for at, record in enumerate(run.history, 1) if record.kind in POINTS]
    every = [Loss(at, is_drawn) for at in points for is_drawn in (False, True)]
    if count is None or count >= len(every):
        return every
    choose = random.Random(run.seed)
    bounds = [part * len(every) // count for part in range(count + 1)]
    spread = [choose.choice(every[first:last]) for first, last in zip(bounds, bounds[1:])]
    return [*spread, *(Loss(at, is_drawn) for at in run.acknowledged_at for is_drawn in (False, True))]


def play(run: Run, losses: list[Loss], folder: pathlib.Path) -> tuple[list[tuple[Loss, str]], str]:
    """The losses of power that lost something, and what was done in words. Trees that are the same are read once."""
    disk, done = Disk(run.root), 0
    trees: dict[str, tuple[Tree, list[Loss]]] = {}
    for loss in sorted(set(losses)):
        for record in run.history[done : loss.at]:
            disk.apply(record)
        done = loss.at
        tree = loss.tree(disk, run.seed)
        trees.setdefault(identity(tree), (tree, []))[1].append(loss)

    def look(name: str) -> Found:
        tree, same = trees[name]
        survived = folder / f"survived-{name[:16]}"
        disk.build(tree, survived)
        found = find(survived / "data", run.expected(same[0].at))
        shutil.rmtree(survived)
        return found

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        founds = dict(zip(trees, pool.map(look, trees)))
    failures = [
        (loss, problem)
        for name, (_, same) in trees.items()
        for loss in same
        if (problem := problem_of(founds[name], run.expected(loss.at)))
    ]
    return sorted(failures), f"{len(trees)} states checked for {len(set(losses))} losses of power"


def problem_of(found: Found, expected: list[Expected]) -> str | None:
    """Why a database is nothing of what is expected; nothing if it is something of it."""
    problems = [differs(found, one) for one in expected]
    return None if None in problems else "\n  or: ".join(dict.fromkeys(map(str, problems)))


def report(run: Run, failures: list[tuple[Loss, str]]) -> str:
    """Where the first failures are, what they lost, and what was not durable by then."""
    lines = [f"POWER_SEED={run.seed}: {len(failures)} losses of power lost something"]
    for loss, problem in failures[:FAILURES_SHOWN_MAX]:
        disk, what = run.disk(loss.at), described(run.history[loss.at - 1])
        case = "what was not synced is drawn" if loss.is_drawn else "what was not synced is dropped"
        lines.append(f"after record {loss.at} ({what}), {run.acknowledged(loss.at)} statements acknowledged, {case}:")
        lines.append(f"  {problem}\n  not durable by then: {not_durable(disk)[:20]}")
    return "\n".join(lines)


def described(record: Record) -> str:
    """A record in a few words."""
    return " ".join([record.kind, record.first or str(record.inode), record.second[:200].decode(errors="replace").split("\n")[0]])


def not_durable(disk: Disk) -> list[str]:
    """Files and folders that are there and would not survive in the strictest case as they are; not what is below them."""
    now, survived = disk.now(), disk.survivors()
    lost = {path for path in now if survived.get(path, "") != now[path] and not STAGED.search(path)}
    return sorted(path for path in lost if os.path.dirname(path) not in lost)
