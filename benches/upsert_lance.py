"""The rival of the bench `upsert`: Lance's own merge_insert with a BTree on the key, on the same rows.

    target/e2e-venv-*/bin/python benches/upsert_lance.py [FOLDER] [ROWS]

Plain Lance does not sync its files: on a local disk its commits are faster than ones that a power cut cannot take away.
"""

import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import lance
import numpy as np
import pyarrow as pa

DIM, CHANGES, ROUNDS = 128, 1_000, 15
ROWS_PER_BATCH = 50_000


def rows_of(keys: np.ndarray) -> pa.Table:
    """Rows by their keys: element i of row k is (k * (i + 1) mod 101) / 101."""
    elements = (keys[:, None] * np.arange(1, DIM + 1) % 101 / 101).astype(np.float32)
    emb = pa.FixedSizeListArray.from_arrays(pa.array(elements.ravel()), DIM)
    return pa.table({"id": pa.array(keys), "tenant": pa.array((keys % 100).astype(np.int32)), "emb": emb})


def report(title: str, times: list[float]) -> None:
    ms = [t * 1e3 for t in times]
    print(f"{title}: first {ms[0]:.1f} ms, median of {len(ms)} {statistics.median(ms):.1f} ms, slowest {max(ms):.1f} ms")


def main() -> None:
    parent = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(tempfile.gettempdir())
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lance-bench-upsert-", dir=parent))
    try:
        schema = rows_of(np.arange(1)).schema
        starts = range(0, rows, ROWS_PER_BATCH)
        batches = (b for start in starts for b in rows_of(np.arange(start, min(start + ROWS_PER_BATCH, rows))).to_batches())
        began = time.perf_counter()
        dataset = lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(folder / "docs.lance"))
        dataset.create_scalar_index("id", "BTREE")
        print(f"Lance {lance.__version__}: {rows} x {DIM} f32, loaded and indexed in {time.perf_counter() - began:.1f} s")
        upserts, deletes = [], []
        dataset = lance.dataset(str(folder / "docs.lance"))
        for number in range(ROUNDS):
            changes = rows_of(np.arange(number * CHANGES, (number + 1) * CHANGES) * 1999 % (2 * rows))
            began = time.perf_counter()
            done = dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(changes)
            upserts.append(time.perf_counter() - began)
            assert done["num_inserted_rows"] + done["num_updated_rows"] == CHANGES, done
            dataset = lance.dataset(str(folder / "docs.lance"))
            began = time.perf_counter()
            dataset.delete(f"id = {number * 7919 % rows}")
            deletes.append(time.perf_counter() - began)
        report("upsert of 1,000 rows", upserts)
        report("delete of one key", deletes)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
