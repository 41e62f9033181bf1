"""LanceDB for `rivals.py`, which calls this: measured from within its process, as it has no server.

    python benches/rivals_lancedb.py FOLDER SECONDS

The clients are threads; LanceDB does its work outside of Python's lock. Prints the lines that `rivals.rs` prints.
"""

import pathlib
import statistics
import sys
import threading
import time

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.ipc

K, CLIENTS, ROUNDS, STREAMS, INGESTS = 10, (1, 8, 64), 3, 5, 3


def timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def search(table, queries: np.ndarray, truth: np.ndarray, clients: int, seconds: float) -> None:
    rates, latencies, hits, lock = [], [], 0, threading.Lock()

    def searches(place: int, until: float, counts: list[int], is_counted: bool) -> None:
        nonlocal hits
        at = place * 61 % len(queries)
        while time.perf_counter() < until:
            began = time.perf_counter()
            query = table.search(queries[at], vector_column_name="embedding").distance_type("cosine").limit(K)
            found = query.select(["id", "_distance"]).to_arrow()["id"].to_numpy()
            took = time.perf_counter() - began
            with lock:
                counts.append(1)
                if is_counted:
                    latencies.append(took)
                    hits += len(np.intersect1d(found, truth[at]))
            at = (at + 1) % len(queries)

    # The first round warms up.
    for number in range(ROUNDS + 1):
        began, counts = time.perf_counter(), []
        arguments = [(place, began + seconds / ROUNDS, counts, number > 0) for place in range(clients)]
        threads = [threading.Thread(target=searches, args=each) for each in arguments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if number > 0:
            rates.append(len(counts) / (time.perf_counter() - began))
    latencies.sort()
    p50, p99 = (latencies[len(latencies) * share // 100] * 1e3 for share in (50, 99))
    recall = hits / len(latencies) / K
    print(f"search clients={clients} qps={statistics.median(rates):.1f} p50={p50:.2f} p99={p99:.2f} recall={recall:.3f}", flush=True)


def main() -> None:
    folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
    base = pa.ipc.open_file(folder / "base.arrow").read_all()
    asked = pa.ipc.open_file(folder / "queries.arrow").read_all().combine_chunks()
    queries, truth = (asked[name].chunk(0).flatten().to_numpy().reshape(len(asked), -1) for name in ("embedding", "nearest"))
    database = lancedb.connect(folder / "lancedb")
    times = [timed(lambda: database.create_table("docs", base, mode="overwrite")) for _ in range(INGESTS)]
    print(f"ingest rows_per_s={len(base) / statistics.median(times):.0f}", flush=True)
    table = database.open_table("docs")
    assert table.to_arrow().num_rows == len(base)
    # The first one warms up.
    times = [timed(table.to_arrow) for _ in range(STREAMS + 1)][1:]
    print(f"stream mb_per_s={base.nbytes / statistics.median(times) / 1e6:.0f}", flush=True)
    for clients in CLIENTS:
        search(table, queries, truth, clients, seconds)


if __name__ == "__main__":
    main()
