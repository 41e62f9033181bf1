"""The rival of the bench `writers`: appends of one row to one Lance table by 1, 2, 4 and 8 threads of one process.

    target/e2e-venv-*/bin/python benches/writers_lance.py [FOLDER] [COMMITS]

Plain Lance knows no key and does not sync its files: what it does for a commit is less than ours.
"""

import pathlib
import shutil
import statistics
import sys
import tempfile
import threading
import time

import lance
import pyarrow as pa

WRITERS, ROUNDS, ROWS = (1, 2, 4, 8), 3, 10_000
SCHEMA = pa.schema([("id", pa.int64()), ("n", pa.int64()), ("note", pa.string()), ("emb", pa.list_(pa.float32(), 4))])


def rows(keys) -> pa.Table:
    return pa.Table.from_pylist([{"id": key, "n": 0, "note": "row", "emb": [key, 1, 0, 0]} for key in keys], SCHEMA)


def race(uri: str, writers: int, commits: int) -> tuple[float, list[float]]:
    """All threads from one moment on: how long they took together, and each commit."""
    barrier, times = threading.Barrier(writers + 1), []

    def write(writer: int) -> None:
        row = rows([1_000_000 * (writer + 1)])
        barrier.wait()
        for _ in range(commits):
            began = time.perf_counter()
            lance.write_dataset(row, uri, mode="append")
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, times


def main() -> None:
    parent = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(tempfile.gettempdir())
    commits = int(sys.argv[2]) if len(sys.argv) > 2 else 400
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lance-bench-writers-", dir=parent))
    try:
        print(f"Lance {lance.__version__}: {ROUNDS} rounds of {commits} commits of one row each, tables of {ROWS} rows")
        for writers in WRITERS:
            lance.write_dataset(rows(range(ROWS)), str(folder / f"{writers}.lance"))
        rounds = {writers: [] for writers in WRITERS}
        for _ in range(ROUNDS):
            for writers in WRITERS:
                rounds[writers].append(race(str(folder / f"{writers}.lance"), writers, commits // writers))
        print("| writers | commits/s | of one writer | p50 ms | p99 ms |\n|--:|--:|--:|--:|--:|")
        of_one = None
        for writers in WRITERS:
            times = sorted(t for _, commits_of_round in rounds[writers] for t in commits_of_round)
            rate = len(rounds[writers][0][1]) / statistics.median(total for total, _ in rounds[writers])
            of_one = of_one or rate
            p50, p99 = (times[int((len(times) - 1) * share)] * 1e3 for share in (0.5, 0.99))
            print(f"| {writers} | {rate:.0f} | {rate / of_one:.2f} × | {p50:.2f} | {p99:.2f} |")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
