"""What `ingest` makes of what it is given."""

import numpy as np
import pyarrow as pa
import pytest

from sagitta import _ingest


def stored(rows) -> pa.Table:
    return _ingest.reader_of(rows).read_all()


EXPECTED = {"id": [1, 2], "name": ["a", None], "emb": [[1, 2], [3, 4]]}
VECTOR = pa.list_(pa.float32(), 2)


def test_a_dict_of_numpy_arrays():
    table = stored({"id": np.array([1, 2]), "name": ["a", None], "emb": np.array([[1.0, 2.0], [3.0, 4.0]])})
    assert table.to_pydict() == EXPECTED
    assert table.schema.types == [pa.int64(), pa.string(), VECTOR]


def test_a_list_of_dicts():
    table = stored([{"id": 1, "name": "a", "emb": [1.0, 2.0]}, {"id": 2, "emb": np.array([3.0, 4.0], np.float32)}])
    assert table.to_pydict() == EXPECTED
    assert table.schema.field("emb").type == VECTOR


def test_arrow_keeps_its_types():
    table = pa.table({"id": pa.array([1, 2], pa.uint16()), "emb": pa.array([[1.0], [2.0]])})
    assert stored(table).equals(table)
    assert stored(table.to_reader()).equals(table)
    assert stored(table.to_batches()[0]).equals(table)


def test_a_pandas_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"id": [1, 2], "name": ["a", None], "emb": [np.array([1, 2], np.float32), np.array([3, 4], np.float32)]}
    )
    table = stored(frame)
    assert table.to_pydict() == EXPECTED
    assert table.schema.types == [pa.int64(), pa.string(), VECTOR]
    lists = stored(pandas.DataFrame({"emb": [[1.0, 2.0], None, [3.0, 4.0]], "tags": [["a"], [], ["b", "c"]]}))
    assert lists.schema.types == [VECTOR, pa.list_(pa.string())]
    assert lists["emb"].to_pylist() == [[1, 2], None, [3, 4]]
    with pytest.raises(ValueError, match="one name"):
        stored(pandas.DataFrame([[1, 2]], columns=["a", "a"]))


def test_a_polars_frame():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(
        {"id": [1, 2], "name": ["a", None], "emb": [[1.0, 2.0], [3.0, 4.0]], "kind": ["x", "x"]},
        schema_overrides={"emb": polars.Array(polars.Float32, 2), "kind": polars.Categorical},
    )
    for given in (frame, frame.lazy()):
        table = stored(given)
        assert table.drop_columns("kind").to_pydict() == EXPECTED
        assert table.schema.types == [pa.int64(), pa.string(), VECTOR, pa.string()]
        assert table["kind"].to_pylist() == ["x", "x"]


def test_lists_of_several_lengths_stay_lists():
    assert stored({"a": [[1.0], [1.0, 2.0]]}).schema.field("a").type == pa.list_(pa.float64())
    assert stored({"a": [["x"], []]}).schema.field("a").type == pa.list_(pa.string())


def test_three_dimensions_are_lists_of_vectors():
    table = stored({"chunks": np.arange(12.0).reshape(2, 3, 2)})
    assert table.schema.field("chunks").type == pa.list_(VECTOR)
    assert table["chunks"].to_pylist()[1] == [[6, 7], [8, 9], [10, 11]]


def test_large_batches_are_sent_in_slices():
    vectors = np.arange(200_000 * 64, dtype=np.float32).reshape(-1, 64)
    batches = list(_ingest.reader_of({"emb": vectors}))
    assert len(batches) > 1
    assert max(batch.nbytes for batch in batches) <= 16 << 20
    assert pa.Table.from_batches(batches).num_rows == 200_000


def test_a_reader_is_streamed():
    made = []

    def batches():
        for number in range(3):
            made.append(number)
            yield pa.record_batch({"id": [number]})

    reader = _ingest.reader_of(pa.RecordBatchReader.from_batches(pa.schema({"id": pa.int64()}), batches()))
    assert not made
    reader.read_next_batch()
    assert made == [0]


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        (np.zeros((2, 2)), TypeError, "names of columns"),
        (5, TypeError, "int holds no rows"),
        ([], TypeError, "list holds no rows"),
        ({}, ValueError, "no columns"),
        ({"a": [1], "b": [1, 2]}, ValueError, "a: 1, b: 2"),
        ({"a": 5}, TypeError, "column a is int"),
    ],
)
def test_what_cannot_be_stored(rows, error, said):
    with pytest.raises(error, match=said):
        _ingest.reader_of(rows)
