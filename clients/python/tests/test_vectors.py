"""Vectors between NumPy and Arrow."""

import decimal
import uuid

import numpy as np
import pyarrow as pa
import pytest

import sagitta
from sagitta import _vectors


def fixed(matrix, kind=None) -> pa.FixedSizeListArray:
    matrix = np.asarray(matrix, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1), kind or pa.float32()), matrix.shape[1])


MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_a_column_in_one_chunk_is_not_copied():
    array = fixed(MATRIX)
    found = sagitta.vectors(array)
    np.testing.assert_array_equal(found, MATRIX)
    assert found.__array_interface__["data"][0] == array.values.buffers()[1].address


def test_a_slice_of_a_column_is_not_copied_either():
    array = fixed(MATRIX).slice(1, 2)
    found = sagitta.vectors(array)
    np.testing.assert_array_equal(found, MATRIX[1:3])
    assert found.__array_interface__["data"][0] == array.values.buffers()[1].address + 12


def test_chunks_are_joined_and_empty_ones_do_not_matter():
    column = pa.chunked_array([fixed(MATRIX[:1]), fixed(MATRIX[:0]), fixed(MATRIX[1:])])
    np.testing.assert_array_equal(sagitta.vectors(column), MATRIX)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.int8(), pa.uint8()])
def test_elements_keep_their_type(kind):
    found = sagitta.vectors(fixed(MATRIX).cast(pa.list_(kind, 3)))
    assert found.dtype == kind.to_pandas_dtype()
    np.testing.assert_array_equal(found, MATRIX)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float32())])
def test_lists_of_one_length_are_vectors_too(kind):
    np.testing.assert_array_equal(sagitta.vectors(pa.array(MATRIX.tolist(), kind)), MATRIX)


def test_null_is_an_error_or_is_filled():
    column = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2))
    with pytest.raises(ValueError, match="1 of 3 vectors are NULL"):
        sagitta.vectors(column)
    np.testing.assert_array_equal(sagitta.vectors(column, null=np.nan), [[1, 2], [np.nan, np.nan], [3, 4]])
    np.testing.assert_array_equal(sagitta.vectors(column.slice(1), null=0), [[0, 0], [3, 4]])
    with pytest.raises(ValueError, match="elements of vectors are NULL"):
        sagitta.vectors(pa.array([[1, None]], pa.list_(pa.float32(), 2)))


def test_an_empty_column_has_its_dimensions():
    found = sagitta.vectors(fixed(MATRIX[:0]))
    assert found.shape == (0, 3)
    assert found.dtype == np.float32


def test_what_is_no_column_of_vectors():
    with pytest.raises(TypeError, match="not vectors"):
        sagitta.vectors(pa.array([1, 2]))
    with pytest.raises(ValueError, match="1 to 2 elements"):
        sagitta.vectors(pa.array([[1.0], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="1 to 2 elements"):
        sagitta.vectors(pa.chunked_array([pa.array([[1.0]]), pa.array([[1.0, 2.0]])]))


def test_columns_of_other_libraries():
    polars = pytest.importorskip("polars")
    series = polars.Series(MATRIX.tolist(), dtype=polars.Array(polars.Float32, 3))
    np.testing.assert_array_equal(sagitta.vectors(series), MATRIX)
    pandas = pytest.importorskip("pandas")
    np.testing.assert_array_equal(sagitta.vectors(pandas.Series(list(MATRIX))), MATRIX)


class Tensor:
    """A tensor that is part of a graph, as torch has them."""

    def __init__(self, values, attached=True):
        self.values, self.attached = np.asarray(values, np.float32), attached

    def detach(self):
        return Tensor(self.values, attached=False)

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        if self.attached:
            raise RuntimeError("call detach() first")
        return self.values


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1, 2, 3], pa.list_(pa.float32(), 3)),
        ((0.5, 1), pa.list_(pa.float32(), 2)),
        ([np.float64(1), np.int8(2)], pa.list_(pa.float32(), 2)),
        (np.zeros(4), pa.list_(pa.float32(), 4)),
        (np.zeros(4, np.float32)[::2], pa.list_(pa.float32(), 2)),
        (np.zeros(4, np.float16), pa.list_(pa.float16(), 4)),
        (np.zeros(4, np.int8), pa.list_(pa.int8(), 4)),
        (np.zeros(4, np.uint8), pa.list_(pa.uint8(), 4)),
        (np.zeros(4, np.int64), pa.list_(pa.float32(), 4)),
        (np.zeros((2, 3), np.float32), pa.list_(pa.list_(pa.float32(), 3))),
        ([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.list_(pa.float32(), 2))),
        (Tensor([1, 2]), pa.list_(pa.float32(), 2)),
        (["a", "b"], pa.list_(pa.string())),
        (np.array(["a", "b"]), pa.list_(pa.string())),
        (5, pa.int64()),
        (np.float32(0.5), pa.float32()),
        ("text", pa.string()),
        (b"bytes", pa.binary()),
        (None, pa.null()),
        (True, pa.bool_()),
        (pa.scalar(5, pa.int16()), pa.int16()),
        (pa.array([1, 2]), pa.list_(pa.int64())),
    ],
)
def test_the_type_of_a_parameter(value, kind):
    array = _vectors.parameter(value)
    assert array.type == kind
    assert len(array) == 1


def test_a_parameter_holds_its_vector():
    assert _vectors.parameter(np.array([1, 2, 3, 4], np.float32)[::2]).to_pylist() == [[1, 3]]
    assert _vectors.parameter(np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])).to_pylist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ([], ValueError, "empty list"),
        (np.array([2**40]), ValueError, "2\\^24"),
        (np.array([True]), TypeError, "packbits"),
        (np.array([1j]), TypeError, "complex"),
        (np.zeros((1, 2, 3)), ValueError, "shape"),
        (np.zeros((2, 0)), ValueError, "shape"),
    ],
)
def test_what_is_no_parameter(value, error, said):
    with pytest.raises(error, match=said):
        _vectors.parameter(value)


def test_rows_of_parameters_have_one_type_each():
    batch = _vectors.bound_many([[1, [1.0, 2.0]], [2, None], (3, np.ones(2))])
    assert batch.schema.types == [pa.int64(), pa.list_(pa.float32(), 2)]
    assert batch.column(1).to_pylist() == [[1, 2], None, [1, 1]]
    mixed = _vectors.bound_many([[1.5, uuid.UUID(int=1)], [decimal.Decimal("0.25"), "x"]])
    assert mixed.to_pydict() == {"1": [decimal.Decimal("1.50"), decimal.Decimal("0.25")], "2": [str(uuid.UUID(int=1)), "x"]}
    with pytest.raises(ValueError, match="one in all rows"):
        _vectors.bound_many([[[1.0, 2.0]], [[1.0]]])
    with pytest.raises(ValueError, match="1 to 2 parameters"):
        _vectors.bound_many([[1], [1, 2]])
    assert _vectors.bound_many([]) is None


def test_parameters_are_a_list():
    assert _vectors.bound([]) is None
    with pytest.raises(TypeError, match="numbers, not names"):
        _vectors.bound({"a": 1})
    with pytest.raises(TypeError, match="list or a tuple"):
        _vectors.bound("a")
