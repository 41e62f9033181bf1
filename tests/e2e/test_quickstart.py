"""The first five minutes of the README: the script runs, and its answers are those of NumPy over the same file."""

import os
import re
import subprocess

import numpy as np
import pytest
from conftest import ROOT, binary

SECONDS_MAX = 10


def close(found: list[float], expected) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_quickstart_loads_searches_and_prints_within_ten_seconds(tmp_path):
    release = os.path.dirname(os.path.abspath(binary()))
    environment = {**os.environ, "SAGITTA_DATA": str(tmp_path / "data"), "CARGO_TARGET_DIR": os.path.dirname(release)}
    for _ in range(2):  # it can be run again
        done = subprocess.run(
            ["bash", str(ROOT / "examples/quickstart.sh")],
            env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for part in ("ORDER BY distance", "jsonlines", "crawlers", "VectorSearch"):
            assert part in done.stdout, f"{part} is not in\n{done.stdout}"
        seconds = int(re.search(r"Loaded and searched in (\d+) s", done.stdout).group(1))
        assert seconds <= SECONDS_MAX


def test_everything_is_loaded(loaded, packages):
    assert loaded.value("SELECT count(*) FROM packages") == len(packages.rows)
    assert loaded.value("SELECT count(*) FROM wishes") == 12
    assert loaded.value("SELECT arrow_typeof(embedding) FROM packages LIMIT 1") == "FixedSizeList(384 x Float16)"


def test_a_search_gives_the_nearest_packages(loaded, packages):
    distances = packages.cosine(packages.wishes[9])
    nearest = np.argsort(distances, kind="stable")[:20]
    rows = loaded.sql(
        "SELECT name, embedding <=> (SELECT embedding FROM wishes WHERE id = 10) AS d FROM packages ORDER BY d LIMIT 20"
    )
    assert [row["name"] for row in rows] == [packages.rows[i]["name"] for i in nearest]
    close([row["d"] for row in rows], distances[nearest])


def test_a_filtered_search_gives_the_nearest_of_the_matching(loaded, packages):
    distances = packages.cosine(packages.wishes[9])
    matching = [
        i for i, row in enumerate(packages.rows)
        if row["released"].year >= 2026 and (row["download_rank"] or 99_999) <= 10_000
    ]
    nearest = sorted(matching, key=lambda i: distances[i])[:20]
    rows = loaded.sql(
        "SELECT name, embedding <=> (SELECT embedding FROM wishes WHERE id = 10) AS d FROM packages"
        " WHERE released >= DATE '2026-01-01' AND download_rank <= 10000 ORDER BY d LIMIT 20"
    )
    assert [row["name"] for row in rows] == [packages.rows[i]["name"] for i in nearest]
    close([row["d"] for row in rows], distances[nearest])


def test_a_search_by_another_row_finds_its_neighbours(loaded, packages):
    distances = packages.cosine(packages.vector_of("psycopg"))
    nearest = [i for i in np.argsort(distances, kind="stable")[:21] if packages.rows[i]["name"] != "psycopg"]
    names = loaded.column(
        "SELECT name FROM packages WHERE name <> 'psycopg'"
        " ORDER BY embedding <=> (SELECT embedding FROM packages WHERE name = 'psycopg') LIMIT 20"
    )
    assert names == [packages.rows[i]["name"] for i in nearest[:20]]


@pytest.mark.parametrize("bound", [0.0001, 0.45, 0.8, 2.5])
def test_a_range_search_gives_every_row_within_the_bound(loaded, packages, bound):
    distances = packages.cosine(packages.vector_of("chardet"))
    assert not (np.abs(distances - bound) < 1e-7).any(), "a bound between two distances tells"
    expected = sorted(packages.rows[i]["id"] for i in np.flatnonzero(distances < bound))
    ids = loaded.column(
        "SELECT id FROM packages WHERE"
        f" cosine_distance(embedding, (SELECT embedding FROM packages WHERE name = 'chardet')) < {bound} ORDER BY id"
    )
    assert ids == expected


def test_a_join_with_an_aggregate_counts_the_search_results(loaded, packages):
    near = set(np.argsort(packages.cosine(packages.wishes[7]), kind="stable")[:300].tolist())
    expected = {}
    for i, row in enumerate(packages.rows):
        crawlers, count = expected.get(row["released"].year, (0, 0))
        expected[row["released"].year] = (crawlers + (i in near), count + 1)
    rows = loaded.sql(
        "WITH near AS (SELECT id FROM packages ORDER BY embedding <=> (SELECT embedding FROM wishes WHERE id = 8) LIMIT 300)"
        " SELECT extract(YEAR FROM p.released) AS year, count(near.id) AS crawlers, count(*) AS packages"
        " FROM packages p LEFT JOIN near ON near.id = p.id GROUP BY year"
    )
    assert {row["year"]: (row["crawlers"], row["packages"]) for row in rows} == expected
