"""Searches through indexes stay right whatever is done to a table: random statements, foreign commits and kills, and after each
of them random searches at the newest and at older versions, held against a model in NumPy and against exact searches.

An answer is never shorter than it can be, has no row that is dead or does not match, and has true distances in order; on average
it has as many of the nearest as `recall_target` says. EXPLAIN ANALYZE tells whether an index was used: never, although at last all
is built, fails the test.

`SAGITTA_PROPERTY_SEED` and `SAGITTA_PROPERTY_STEPS` (of each table) choose the run. What is built in the background and where a
kill hits is a matter of time, so a seed repeats the kind of a run and not each of its steps; the journal beside the database has them.
"""

import os

import numpy as np
import pytest
from property_changes import Changes
from property_run import Run
from property_searches import Searches
from vector_model import ELEMENTS

# Taken out: the binary refuses variables of its prefix that it does not know.
SEED = int(os.environ.pop("SAGITTA_PROPERTY_SEED", "20261201"))
STEPS = int(os.environ.pop("SAGITTA_PROPERTY_STEPS", "12"))
SHOWS_FIGURES = bool(os.environ.pop("SAGITTA_PROPERTY_FIGURES", ""))
RECALL_MARGIN = 0.03
# An average of fewer searches says little.
SEARCHES_MIN = 30


# A driver whose server was killed complains once more when its cursor is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("element", ELEMENTS)
def test_searches_are_right_at_every_version_whatever_was_done(element, tmp_path, capsys):
    run = Run(element, f"{SEED} {element}", tmp_path)
    with run.noting(f"SAGITTA_PROPERTY_SEED={SEED} SAGITTA_PROPERTY_STEPS={STEPS}, {element}, journal {tmp_path}/journal.sql"):
        run.start()
        changes, searches = Changes(run), Searches(run)
        try:
            run.create()
            run.apply(changes.create_index())
            for _ in range(STEPS):
                searches.look(at_head=3, elsewhere=3)
                changes.take(lambda is_still: searches.look(at_head=int(is_still), elsewhere=1))
            # How often an index was there in time is a matter of the machine's other work: now one is.
            if not run.indexes:
                run.apply(changes.create_index())
            run.apply(changes.insert_and_wait(4_500))
            searches.look(at_head=20, elsewhere=20)
            run.plain.table("CHECK TABLE t")
            run.stop(is_killed=False)
        finally:
            run.kill()
        recalls = {target: (len(found), round(float(np.mean(found)), 3)) for target, found in sorted(searches.recalls.items())}
        with capsys.disabled():
            print(
                f"\nindexes: seed {SEED}, {element} {run.dim}, {STEPS} steps, {len(run.states)} versions,"
                f" {run.figures['searches']} searches, by an index {searches.used} of {searches.eligible}, recall {recalls}"
            )
            if SHOWS_FIGURES:
                print(dict(run.figures), *run.warnings, sep="\n")
                print({name: (len(found), round(float(np.mean(found)), 3)) for name, found in sorted(searches.by_method.items())})
        assert searches.used > 0, f"none of {searches.eligible} searches used an index"
        for target, (count, recall) in recalls.items():
            assert count < SEARCHES_MIN or recall >= target - RECALL_MARGIN, f"recall {recalls}"
