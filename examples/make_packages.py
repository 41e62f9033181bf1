"""Makes the data of the quickstart: 10,000 real package descriptions with their embeddings, and 12 to search with.

    python examples/make_packages.py <packages-100k.parquet> <held-out.parquet> examples

The input is the project's benchmark set: 100,000 summaries of packages on the Python Package Index, each with the
384 float16 dimensions that the sentence model all-MiniLM-L6-v2 gives its summary, scaled to length 1. We keep every
package that has a download rank (1,845: those among the 15,000 most downloaded) and fill up to 10,000 with a sample
of the others, drawn with a fixed seed, so that the same input gives the same rows. Types stay as they are.
`wishes.parquet` holds 12 summaries that are not among the 100,000, with their embeddings: texts to search for.
"""

import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 10_000
SEED = 2026
WISHES = (2, 29, 65, 78, 80, 83, 94, 99, 111, 121, 130, 131)


def choose(ranks: list[int | None]) -> list[int]:
    """The row numbers to keep, ascending."""
    ranked = [row for row, rank in enumerate(ranks) if rank is not None]
    rest = [row for row, rank in enumerate(ranks) if rank is None]
    return sorted(ranked + random.Random(SEED).sample(rest, ROWS - len(ranked)))


def write(table: pa.Table, target: str) -> None:
    pq.write_table(
        table.combine_chunks(),
        target,
        compression="zstd",
        compression_level=19,
        row_group_size=2_500,
        # A dictionary of random half floats is longer than the floats.
        use_dictionary=[name for name in table.column_names if name != "embedding"],
        use_byte_stream_split=["embedding.list.element"],
    )
    print(f"{target}: {table.num_rows} rows of {', '.join(table.column_names)}")


def main() -> None:
    source, held_out, folder = sys.argv[1:]
    packages = pq.read_table(source)
    write(packages.take(pa.array(choose(packages["download_rank"].to_pylist()))), f"{folder}/packages.parquet")
    wishes = pq.read_table(held_out).take(pa.array(WISHES))
    number = pa.array(range(1, len(WISHES) + 1), pa.int64())
    write(
        pa.table({"id": number, "wish": wishes["summary"], "embedding": wishes["embedding"]}),
        f"{folder}/wishes.parquet",
    )


if __name__ == "__main__":
    main()
