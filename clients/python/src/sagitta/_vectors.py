"""Vectors between NumPy and Arrow: columns of a result, parameters, columns to store."""

from __future__ import annotations

import decimal
import numbers
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

# What a vector may be made of in a table; every other float becomes float32, the element of VECTOR(d).
_ELEMENTS = {
    np.dtype("float32"): pa.float32(),
    np.dtype("float16"): pa.float16(),
    np.dtype("int8"): pa.int8(),
    np.dtype("uint8"): pa.uint8(),
}
_EXACT_IN_FLOAT32 = 2**24


def vectors(column: Any, *, null: float | None = None) -> np.ndarray:
    """The vectors of a column as an array of shape (n, d), in the element type of the column.

    `column`: an Arrow array or chunked array, a Polars or pandas column, anything with the Arrow C interface. Its type is
    a list of fixed size, or a list in which all rows have one length. A column in one chunk without NULL is not copied
    (the array is read-only then); several chunks are copied once. `null` fills the rows that are NULL, which are an
    error if it is not given.

    Raises:
        ValueError: rows are NULL, or differ in length.
        TypeError: the column holds no lists of numbers.
    """
    chunked = _chunked(column)
    if isinstance(chunked.type, pa.BaseExtensionType):
        chunked = pa.chunked_array([chunk.storage for chunk in chunked.chunks], type=chunked.type.storage_type)
    if not _is_list(chunked.type):
        raise TypeError(f"the column holds {chunked.type}, not vectors; pass a column of type VECTOR")
    if chunked.null_count and null is None:
        raise ValueError(
            f"{chunked.null_count} of {len(chunked)} vectors are NULL; leave them out with WHERE … IS NOT NULL, "
            "or pass null=nan to fill them"
        )
    parts = [_matrix(chunk, null) for chunk in chunked.chunks if len(chunk)]
    if not parts:
        dimensions = chunked.type.list_size if pa.types.is_fixed_size_list(chunked.type) else 0
        return np.empty((0, dimensions), chunked.type.value_type.to_pandas_dtype())
    lengths = {part.shape[1] for part in parts}
    if len(lengths) > 1:
        raise ValueError(f"the lists have {min(lengths)} to {max(lengths)} elements, vectors of one column have one length")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _chunked(column: Any) -> pa.ChunkedArray:
    if isinstance(column, pa.ChunkedArray):
        return column
    if isinstance(column, pa.Array):
        return pa.chunked_array([column])
    if hasattr(column, "__arrow_c_stream__") or hasattr(column, "__arrow_c_array__"):
        return pa.chunked_array(column) if hasattr(column, "__arrow_c_stream__") else pa.chunked_array([pa.array(column)])
    return pa.chunked_array([pa.array(column)])


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _matrix(chunk: pa.Array, null: float | None) -> np.ndarray:
    values = chunk.flatten()
    if values.null_count:
        raise ValueError(f"{values.null_count} elements of vectors are NULL; a vector has a number in every place")
    try:
        flat = values.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise TypeError(f"the lists hold {values.type}, not numbers: {error}") from error
    present = len(chunk) - chunk.null_count
    if pa.types.is_fixed_size_list(chunk.type):
        dimensions = chunk.type.list_size
    else:
        lengths = chunk.value_lengths().drop_null().unique().to_pylist()
        if len(lengths) > 1:
            raise ValueError(f"the lists have {min(lengths)} to {max(lengths)} elements, vectors of one column have one length")
        dimensions = lengths[0] if lengths else 0
    matrix = flat.reshape(present, dimensions)
    if not chunk.null_count:
        return matrix
    filled = np.full((len(chunk), dimensions), null, np.result_type(matrix.dtype, np.asarray(null)))
    filled[chunk.is_valid().to_numpy(zero_copy_only=False)] = matrix
    return filled


def as_numpy(value: Any) -> np.ndarray | None:
    """`value` as an array if it is one, of any library: NumPy, torch, JAX, TensorFlow. None otherwise."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str | bytes | np.generic | pa.Scalar | pa.Array) or not hasattr(value, "__array__"):
        return None
    if hasattr(value, "detach"):  # A torch tensor that is part of a graph, or not on the CPU, refuses `__array__`.
        value = value.detach()
        value = value.cpu() if hasattr(value, "cpu") else value
    array = np.asarray(value)
    return array if array.ndim else None


def parameter(value: Any) -> pa.Array:
    """One parameter as an Arrow array of one row.

    Arrays of numbers, and lists of numbers, are vectors: FixedSizeList of float32, or of float16, int8, uint8 if NumPy
    says so. Arrays of two dimensions are lists of vectors. Everything else has the type that Arrow gives it.
    """
    if isinstance(value, pa.Scalar):
        return pa.array([value], value.type)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return pa.array([value.to_pylist()], pa.list_(value.type))
    if isinstance(value, uuid.UUID):
        return pa.array([str(value)])
    array = as_numpy(value)
    if array is None and isinstance(value, Sequence) and _are_numbers(value):
        array = np.asarray(value)
    if array is None or array.dtype.kind in "OSUMm":
        return pa.array([value if array is None else array.tolist()])
    return stored(array[np.newaxis], "a parameter")


def _are_numbers(value: Sequence) -> bool:
    if isinstance(value, str | bytes | bytearray):
        return False
    numeric = lambda item: isinstance(item, numbers.Real) and not isinstance(item, bool)  # noqa: E731
    if not value:
        raise ValueError("an empty list is no vector, and its type as a parameter is not known; pass pyarrow.scalar([], …)")
    if all(numeric(item) for item in value):
        return True
    nested = all(isinstance(item, Sequence) and not isinstance(item, str | bytes) and item for item in value)
    return nested and all(numeric(number) for item in value for number in item)


def stored(array: np.ndarray, what: str) -> pa.Array:
    """A NumPy array of n rows as a column: 2 dimensions are n vectors, 3 are n lists of vectors, 1 is n values."""
    if array.ndim == 1:
        return pa.array(array)
    if array.ndim > 3 or 0 in array.shape[1:]:
        raise ValueError(f"{what} has the shape {array.shape}; vectors are (n, d), lists of vectors are (n, m, d)")
    if array.ndim == 3:
        rows, per_row, dimensions = array.shape
        flat = stored(array.reshape(rows * per_row, dimensions), what)
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * per_row), flat)
    array = _element(array, what)
    flat = pa.array(np.ascontiguousarray(array).reshape(-1), _ELEMENTS[array.dtype])
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _element(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype in _ELEMENTS:
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind in "iu":
        if array.size and max(abs(int(array.min())), abs(int(array.max()))) > _EXACT_IN_FLOAT32:
            raise ValueError(
                f"{what} has integers above 2^24, which float32 cannot hold; pass astype(float32) if that is meant"
            )
        return array.astype(np.float32)
    if array.dtype.kind == "b":
        raise TypeError(f"{what} is an array of bool; pack bits with numpy.packbits for a BITVECTOR, or pass astype(float32)")
    raise TypeError(f"{what} is an array of {array.dtype}; vectors are made of floats, int8 or uint8")


def bound(parameters: Any) -> pa.RecordBatch | None:
    """A sequence of parameters as the one row that is bound; None if there are none."""
    if isinstance(parameters, Mapping):
        raise TypeError("parameters have numbers, not names: write $1, $2 in the SQL and pass a list")
    if isinstance(parameters, str | bytes) or not isinstance(parameters, Sequence):
        raise TypeError(f"parameters are a list or a tuple, not {type(parameters).__name__}; write [value] for a single one")
    if not parameters:
        return None
    arrays = [parameter(value) for value in parameters]
    return pa.record_batch(arrays, names=[str(number) for number in range(1, len(arrays) + 1)])


def bound_many(rows: Sequence[Any]) -> pa.RecordBatch | None:
    """Several rows of parameters, as one batch. Each column has one type."""
    rows = [list(row) for row in rows]
    if not rows:
        return None
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise ValueError(f"the rows have {min(widths)} to {max(widths)} parameters; each must have the same number")
    arrays = [_parameter_column(values) for values in zip(*rows, strict=True)]
    return pa.record_batch(arrays, names=[str(number) for number in range(1, len(arrays) + 1)])


def _parameter_column(values: Sequence[Any]) -> pa.Array:
    plain = [value if as_numpy(value) is None else as_numpy(value) for value in values]
    plain = [str(value) if isinstance(value, uuid.UUID) else value for value in plain]
    if not any(isinstance(value, np.ndarray | list | tuple) for value in plain):
        if any(isinstance(value, decimal.Decimal) for value in plain):
            plain = [decimal.Decimal(repr(value)) if isinstance(value, float) else value for value in plain]
        return pa.array(plain)
    known = [parameter(value) for value in plain if value is not None]
    kinds = {array.type for array in known}
    if len(kinds) > 1:
        raise ValueError(f"one parameter has the types {', '.join(sorted(map(str, kinds)))}; it must have one in all rows")
    kind, filled = kinds.pop(), iter(known)
    none = pa.nulls(1, kind)
    return pa.concat_arrays([none if value is None else next(filled) for value in plain])
