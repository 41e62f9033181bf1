"""The graph as a library and two index libraries in turn: rates at a recall of 0.95 and 0.99, the median of pairs.

    pip install rabitqlib scann numpy
    python benches/pairs_ann.py [--dataset minilm|fashion|large] [--pairs 5] [--only symqg|scann]

Data sets are those of `ann` (benches/README.md), at most 1,000 queries, k = 10. The rivals are built once, on two threads, and each is
asked with the least of its efforts that reaches the recall; ours is built anew for each pair (`crates/ann/benches/recall.rs`) and asked
with the effort that it chooses for the recall itself. A rate is that of a batch call on one thread, the best of three; of ours, of
calls one after the other. Latencies are of one question at a time. `other` is the number of cores that other processes kept busy.

Rows are appended to `$ANNBENCH/pairs.jsonl`.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import re
import statistics
import subprocess
import time
from collections.abc import Callable

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent / os.environ.get("ANNBENCH", "annbench")
K, TARGETS, ROUNDS = 10, (0.95, 0.99), 3
# Vertices that are kept; lists that are read and candidates that are compared.
BEAMS = (10, 12, 14, 16, 18, 20, 24, 28, 34, 40, 48, 56, 68, 80, 96, 112, 136, 160, 192, 224, 270, 320, 384, 450)
LISTS = [(lists, compared) for lists in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 200) for compared in (50, 100)]


class Dataset:
    """The arrays of a data set."""

    def __init__(self, name: str):
        array = lambda file: np.load(ROOT / "data" / name / f"{file}.npy")
        self.name, self.base = name, array("base")
        self.queries, self.nearest = np.ascontiguousarray(array("query")[:1000]), array("gt")[:1000, :K]
        self.metric = "l2" if name.startswith("fashion") else "cosine"

    def recall(self, found: np.ndarray) -> float:
        return float(np.mean([len(np.intersect1d(ids[:K], nearest)) / K for ids, nearest in zip(found, self.nearest)]))


class Rival:
    """An index of another library. `search(queries, effort, threads)` gives the rows found."""

    def __init__(self, name: str, data: Dataset, make: Callable, efforts: list):
        started = time.perf_counter()
        self.name, self.data, self.search = name, data, make(data)
        self.build_s = time.perf_counter() - started
        self.efforts = {target: self.least(target, efforts) for target in TARGETS}

    def least(self, target: float, efforts: list) -> tuple | None:
        """The least effort that reaches a recall, and the recall it has."""
        for effort in efforts:
            recall = self.data.recall(self.search(self.data.queries, effort, 1))
            if recall >= target:
                return effort, recall
        return None

    def measured(self, target: float) -> dict | None:
        if self.efforts[target] is None:
            return None
        effort, recall = self.efforts[target]
        queries, rates, times = self.data.queries, {}, []
        for threads in (1, 2):
            seconds = []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                self.search(queries, effort, threads)
                seconds.append(time.perf_counter() - started)
            rates[f"qps_{threads}t"] = round(len(queries) / min(seconds))
        self.search(queries[:1], effort, 1)
        for query in queries:
            started = time.perf_counter()
            self.search(query[None], effort, 1)
            times.append(1e3 * (time.perf_counter() - started))
        p50, p99 = np.percentile(times, [50, 99])
        return {"recall": round(recall, 4), **rates, "p50": round(float(p50), 4), "p99": round(float(p99), 4)}


def symqg(data: Dataset) -> Callable:
    """SymphonyQG with whole vectors in its graph: rabitqlib's fastest graph."""
    import rabitqlib

    index = rabitqlib.SymqgIndex(data.base.shape[1], 32, metric="l2" if data.metric == "l2" else "ip", quantization_bits=0)
    index.build(data.base, 200, num_threads=2)
    return lambda queries, effort, threads: index.search(queries, K, effort, num_threads=threads)[0]


def scann(data: Dataset) -> Callable:
    """Lists with SOAR and the anisotropic loss, candidates compared as floats."""
    import scann

    is_l2 = data.metric == "l2"
    builder = scann.scann_ops_pybind.builder(data.base, K, "squared_l2" if is_l2 else "dot_product").set_n_training_threads(2)
    builder = builder.tree(400, 16, training_sample_size=len(data.base), **({} if is_l2 else {"soar_lambda": 1.5}))
    index = builder.score_ah(2, anisotropic_quantization_threshold=float("nan") if is_l2 else 0.2).reorder(100).build()
    index.set_num_threads(2)

    def search(queries, effort, threads):
        if len(queries) == 1:
            return index.search(queries[0], leaves_to_search=effort[0], pre_reorder_num_neighbors=effort[1])[0][None]
        call = index.search_batched_parallel if threads == 2 else index.search_batched
        return call(queries, leaves_to_search=effort[0], pre_reorder_num_neighbors=effort[1])[0]

    return search


RIVALS = {"symqg": ("rabitqlib", symqg, BEAMS), "scann": ("scann", scann, LISTS)}
LINE = re.compile(r"calibrated ([\d.]+) .*? ([\d.]+) +(\d+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +\d+ +\d+ +[\d.]+$")


def ours(data: Dataset) -> tuple[float, dict]:
    """The time of a build, and what was measured for each recall."""
    command = ["cargo", "bench", "--quiet", "--package", "ann", "--bench", "recall", "--"]
    command += [str(ROOT / "data" / data.name), data.metric, "64", "only-calibrated"]
    said = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True).stdout
    found = {}
    for line in said.splitlines():
        if match := LINE.match(line):
            target, recall, one, two, _, p50, p99 = map(float, match.groups())
            found[target] = {"recall": recall, "qps_1t": one, "qps_2t": two, "p50": p50 / 1e3, "p99": p99 / 1e3}
    return float(re.search(r"build: ([\d.]+) s", said)[1]), found


def busy() -> float:
    """Core-seconds that all processes have taken."""
    user, nice, system, _, _, irq, soft, steal = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def own() -> float:
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="minilm")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=RIVALS)
    arguments = parser.parse_args()
    data = Dataset(arguments.dataset)
    rivals = [Rival(name, data, make, efforts) for name, (_, make, efforts) in RIVALS.items() if arguments.only in (None, name)]
    rows, started = [], (time.perf_counter(), busy(), own())
    for pair in range(arguments.pairs):
        build_s, found = ours(data)
        rows += [{"pair": pair, "system": "sagitta", "target": target, "build_s": build_s, **row} for target, row in found.items()]
        for rival in rivals:
            for target in TARGETS:
                if row := rival.measured(target):
                    rows.append({"pair": pair, "system": rival.name, "target": target, "build_s": round(rival.build_s, 2), **row})
    seconds, all_busy, all_own = (now - then for now, then in zip((time.perf_counter(), busy(), own()), started))
    versions = {name: importlib.metadata.version(package) for name, (package, *_) in RIVALS.items() if arguments.only in (None, name)}
    said = {"dataset": data.name, "other": round((all_busy - all_own) / seconds, 2), "versions": versions}
    with (ROOT / "pairs.jsonl").open("a") as file:
        file.writelines(json.dumps({**said, **row}) + "\n" for row in rows)
    print(said)
    for target in TARGETS:
        for system in ("sagitta", *(rival.name for rival in rivals)):
            of_system = [row for row in rows if row["system"] == system and row["target"] == target]
            names = ("recall", "qps_1t", "qps_2t", "p50", "p99", "build_s")
            medians = {name: round(statistics.median(row[name] for row in of_system), 4) for name in names if of_system}
            print(target, system, medians or "not reached")


if __name__ == "__main__":
    main()
