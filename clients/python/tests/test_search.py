"""`search` against NumPy."""

import numpy as np
import pytest

import sagitta

ROWS, DIMENSIONS = 2_000, 16


@pytest.fixture
def stored(connection, lab):
    """Vectors of this test, and the name of their table."""
    rng = np.random.default_rng(5)
    emb = rng.normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
    rows = {"id": np.arange(ROWS), "tenant": np.arange(ROWS) % 10, "lang": ["de", "en", None, "it's"] * (ROWS // 4), "emb": emb}
    connection.ingest((lab, "docs"), rows)
    return emb.astype(np.float64), (lab, "docs")


def distances(metric: str, emb: np.ndarray, query: np.ndarray) -> np.ndarray:
    if metric == "l2":
        return np.linalg.norm(emb - query, axis=1)
    if metric == "l1":
        return np.abs(emb - query).sum(axis=1)
    if metric == "inner_product":
        return -(emb @ query)
    return 1 - emb @ query / (np.linalg.norm(emb, axis=1) * np.linalg.norm(query))


@pytest.mark.parametrize("metric", [None, "cosine", "l2", "l1", "inner_product"])
def test_the_nearest_are_those_of_numpy(connection, stored, metric):
    emb, table = stored
    query = emb[3] + 0.1
    expected = distances(metric or "cosine", emb, query.astype(np.float32))
    found = connection.search(table, "emb", query, k=20, columns=["id"], metric=metric)
    assert found.column_names == ["id", "_distance"]
    assert found["id"].to_pylist() == np.argsort(expected)[:20].tolist()
    np.testing.assert_allclose(found["_distance"], np.sort(expected)[:20], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("condition", "keeps"),
    [
        ("tenant = 7", lambda i: i % 10 == 7),
        ({"tenant": 7}, lambda i: i % 10 == 7),
        ({"tenant": [1, 2], "lang": ["de", None]}, lambda i: (i % 10 in (1, 2)) and (i % 4 in (0, 2))),
        ({"lang": "it's"}, lambda i: i % 4 == 3),
        ("lang = 'it''s' AND id < 100", lambda i: i % 4 == 3 and i < 100),
        ({"tenant": []}, lambda i: False),
        ({"tenant": 99}, lambda i: False),
    ],
)
def test_a_filter_chooses_the_candidates(connection, stored, condition, keeps):
    emb, table = stored
    order = np.argsort(distances("cosine", emb, emb[3]), kind="stable")
    expected = [int(i) for i in order if keeps(int(i))][:10]
    found = connection.search(table, "emb", emb[3].astype(np.float32), k=10, columns=["id"], filter=condition)
    assert found["id"].to_pylist() == expected


def test_vectors_of_a_result_are_those_stored(connection, stored):
    emb, table = stored
    found = connection.search(table, "emb", emb[0], k=ROWS)
    assert found.column_names == ["id", "tenant", "lang", "emb", "_distance"]
    order = np.argsort(found["id"].to_numpy())
    np.testing.assert_array_equal(sagitta.vectors(found["emb"])[order], emb.astype(np.float32))


def test_a_filter_cannot_break_out(connection, stored):
    _, table = stored
    evil = "x'; DROP TABLE docs; --"
    assert connection.search(table, "emb", np.ones(DIMENSIONS), filter={"lang": evil}).num_rows == 0
    with pytest.raises(sagitta.Error):
        connection.search(table, "emb", np.ones(DIMENSIONS), filter="true) OR (SELECT 1")
    assert connection.query(f"SELECT count(*) AS n FROM {table[0]}.docs")["n"].to_pylist() == [ROWS]


def test_mistakes_are_named(connection, stored):
    _, table = stored
    for wrong, said in (
        (lambda: connection.search(table, "emb", [1, 2]), "16"),
        (lambda: connection.search(table, "missing", np.ones(DIMENSIONS)), "missing"),
        (lambda: connection.search((table[0], "nowhere"), "emb", np.ones(DIMENSIONS)), "nowhere"),
        (lambda: connection.search(table, "emb", np.ones(DIMENSIONS), metric="frobs"), "frobs"),
        (lambda: connection.search(table, "emb", np.ones(DIMENSIONS), columns=["nothing"]), "nothing"),
    ):
        with pytest.raises(sagitta.Error, match=said):
            wrong()
