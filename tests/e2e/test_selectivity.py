"""A filtered search gives the min(k, matches) nearest matching rows, whatever the filter keeps: for every metric and
every element type, compared with NumPy over the same rows, ties in row order.

The vectors are small whole numbers, so that sums are exact in every arithmetic and ties are real.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Sagitta

ROWS = 100_000
PARTS = 3
DIMENSIONS = 32
K = 10
NULL_ROW = 17
ZERO_ROW = 23
# u is a permutation of 0 … ROWS - 1: `u < n` keeps n rows.
SELECTIVITIES = {"all": None, "100%": ROWS, "10%": ROWS // 10, "1%": ROWS // 100, "0.1%": ROWS // 1000, "0.001%": 1, "none": 0}
COLUMNS = {"f": np.float64, "h": np.float64, "i": np.float64, "g": np.float64, "b": None}


def fixed(rows: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), kind), DIMENSIONS)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(7)
    signed = rng.integers(-4, 5, (ROWS, DIMENSIONS))
    # Every vector of the second half is one of the first: many exact ties, far apart in row order.
    signed[ROWS // 2 :] = signed[rng.permutation(ROWS // 2)]
    signed[ZERO_ROW] = 0
    return {"id": np.arange(ROWS), "u": rng.permutation(ROWS), "signed": signed, "unsigned": signed + 4}


@pytest.fixture(scope="module")
def database(tmp_path_factory, data) -> Sagitta:
    folder = tmp_path_factory.mktemp("selectivity")
    database = Sagitta(str(folder / "data"))
    database.ok(
        "-c",
        f"CREATE TABLE t (id BIGINT, u BIGINT, f VECTOR({DIMENSIONS}), h VECTOR({DIMENSIONS}, FLOAT16),"
        f" i VECTOR({DIMENSIONS}, INT8), g VECTOR({DIMENSIONS}, UINT8), b BITVECTOR({DIMENSIONS}))",
    )
    for part in range(PARTS):
        rows = slice(part * ROWS // PARTS, (part + 1) * ROWS // PARTS)
        file = folder / f"part{part}.parquet"
        pq.write_table(
            pa.table(
                {
                    "id": data["id"][rows],
                    "u": data["u"][rows],
                    "s": fixed(data["signed"][rows], pa.float32()),
                    "g": fixed(data["unsigned"][rows], pa.uint8()),
                }
            ),
            file,
        )
        database.ok(
            "-c", f"CREATE EXTERNAL TABLE part STORED AS PARQUET LOCATION '{file}'",
            "-c", "INSERT INTO t SELECT id, u,"
            f" CASE WHEN id = {NULL_ROW} THEN NULL ELSE s END,"
            f" CASE WHEN id = {NULL_ROW} THEN NULL ELSE s::VECTOR({DIMENSIONS}, FLOAT16) END,"
            f" CASE WHEN id = {NULL_ROW} THEN NULL ELSE s::VECTOR({DIMENSIONS}, INT8) END,"
            f" CASE WHEN id = {NULL_ROW} THEN NULL ELSE g END,"
            f" CASE WHEN id = {NULL_ROW} THEN NULL ELSE binary_quantize(s) END FROM part"
            # Rows are stored in the order of the query, so that row order is the order of the ids.
            " ORDER BY id",
            "-c", "DROP TABLE part",
        )
    assert database.value("SELECT count(*) FROM t") == ROWS
    return database


def distances(metric: str, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The plain exact answer in double precision; NaN where there is none."""
    rows = rows.astype(np.float64)
    if metric == "l2":
        return np.sqrt(((rows - query) ** 2).sum(1))
    if metric == "l1":
        return np.abs(rows - query).sum(1)
    if metric == "inner_product":
        return -(rows @ query)
    if metric == "cosine":
        with np.errstate(invalid="ignore"):
            return 1 - (rows @ query) / np.sqrt((rows**2).sum(1) * (query**2).sum())
    differing = (rows != query).sum(1)
    if metric == "hamming":
        return differing.astype(np.float64)
    common = (rows * query).sum(1)
    with np.errstate(invalid="ignore"):
        return 1 - common / (common + differing)


CASES = [(metric, column) for metric in ("l2", "cosine", "inner_product", "l1") for column in "fhig"]
CASES += [("hamming", "b"), ("jaccard", "b")]
OPERATORS = {"l2": "<->", "cosine": "<=>", "inner_product": "<#>", "l1": "<+>", "hamming": "<~>", "jaccard": "<%>"}


@pytest.mark.parametrize("metric, column", CASES)
def test_a_filter_of_any_selectivity_gives_the_nearest_matching_rows(database, data, metric, column):
    signed, unsigned = data["signed"], data["unsigned"]
    rows = {"g": unsigned, "b": (signed > 0).astype(int)}.get(column, signed)
    query = rows[4711].astype(np.float64)
    literal = "".join(str(int(bit)) for bit in query) if column == "b" else "[" + ",".join(f"{v:g}" for v in query) + "]"
    exact = distances(metric, rows, query)
    exact[NULL_ROW] = np.nan
    statements = [
        f"SELECT '{name}' AS kept, id, {column} {OPERATORS[metric]} '{literal}' AS d FROM t"
        + ("" if kept is None else f" WHERE u < {kept}") + f" ORDER BY d LIMIT {K}"
        for name, kept in SELECTIVITIES.items()
    ]
    answers: dict[str, list] = {name: [] for name in SELECTIVITIES}
    for row in database.sql(*statements):
        answers[row["kept"]].append((row["id"], row["d"]))
    for name, kept in SELECTIVITIES.items():
        candidates = np.flatnonzero(~np.isnan(exact) & (data["u"] < (ROWS if kept is None else kept)))
        # Distances that differ in the last bits only are one distance here.
        order = candidates[np.lexsort((candidates, np.round(exact[candidates], 9)))]
        assert len(answers[name]) == min(K, len(candidates)), name
        np.testing.assert_allclose([d for _, d in answers[name]], exact[order[:K]], atol=1e-6, err_msg=name)
        if metric == "cosine":
            # Two vectors of equal cosine but different length may differ in the last bit: then either order is right.
            for row, distance in answers[name]:
                assert abs(exact[row] - distance) < 1e-6
            assert len({row for row, _ in answers[name]}) == len(answers[name])
        else:
            assert [row for row, _ in answers[name]] == order[:K].tolist(), name


def test_equal_vectors_come_in_row_order(database, data):
    twins = np.flatnonzero((data["signed"] == data["signed"][4711]).all(1)).tolist()
    assert len(twins) >= 2
    for operator in ("<->", "<=>", "<#>", "<+>"):
        literal = "[" + ",".join(str(v) for v in data["signed"][4711]) + "]"
        found = database.column(f"SELECT id FROM t ORDER BY f {operator} '{literal}' LIMIT {len(twins)}")
        if operator != "<#>":
            assert found == twins
        else:
            assert found == sorted(found, key=lambda row: (-(data["signed"][row] @ data["signed"][4711]), row))


def test_a_row_without_a_vector_or_a_direction_is_never_found(database):
    rows = database.column("SELECT id FROM t ORDER BY f <=> (SELECT f FROM t WHERE id = 1) LIMIT 200000")
    assert len(rows) == ROWS - 2
    assert not {NULL_ROW, ZERO_ROW} & set(rows)
    assert database.value("SELECT count(*) FROM (SELECT id FROM t ORDER BY f <-> (SELECT f FROM t WHERE id = 1) LIMIT 200000)") == ROWS - 1
