"""Whatever holds rows, as the stream of Arrow batches that is sent to a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from . import _vectors

# A server takes messages of 64 MiB unless told otherwise; a batch larger than this is sent in slices.
_BATCH_BYTES_MAX = 16 << 20


def reader_of(rows: Any) -> pa.RecordBatchReader:
    """`rows` as batches of at most 16 MiB each, in order.

    Takes an Arrow table, batch or reader (streamed, its types kept), a Polars or pandas data frame, a list of dicts, and
    a dict of columns, in which NumPy arrays of shape (n, d) are vectors. In a pandas data frame a column of NumPy arrays
    or lists of floats that all have one length is one of vectors too.

    Raises:
        TypeError: it is none of these.
        ValueError: the columns differ in length.
    """
    reader = _reader(rows)
    if not len(reader.schema):
        raise ValueError("there are no columns to store; pass at least one")
    return pa.RecordBatchReader.from_batches(reader.schema, _slices(reader))


def _reader(rows: Any) -> pa.RecordBatchReader:
    if isinstance(rows, pa.RecordBatchReader):
        return rows
    if isinstance(rows, pa.Table):
        return rows.to_reader()
    if isinstance(rows, pa.RecordBatch):
        return pa.RecordBatchReader.from_batches(rows.schema, [rows])
    if isinstance(rows, Mapping):
        return _table_of_columns(rows).to_reader()
    if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        return _table_of_columns({name: [row.get(name) for row in rows] for name in names}).to_reader()
    kind = f"{type(rows).__module__.partition('.')[0]}.{type(rows).__name__}"
    if kind == "pandas.DataFrame":
        return _table_of_pandas(rows).to_reader()
    if kind == "polars.LazyFrame":
        rows = rows.collect()
    if hasattr(rows, "__arrow_c_stream__"):
        return _plain(pa.RecordBatchReader.from_stream(rows))
    if isinstance(rows, np.ndarray):
        raise TypeError("an array has no names of columns; pass {'emb': array}")
    raise TypeError(
        f"{type(rows).__name__} holds no rows that can be stored; pass an Arrow table, a data frame, a list of dicts, "
        "or a dict of columns"
    )


def _table_of_columns(columns: Mapping[str, Any]) -> pa.Table:
    arrays = {name: _column(name, values) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in lengths.items())
        raise ValueError(f"the columns have different numbers of rows: {listed}")
    return pa.table(arrays)


def _column(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    array = _vectors.as_numpy(values)
    if array is not None and array.dtype.kind != "O":
        return _vectors.stored(array, f"column {name}")
    vectors = _vectors_of_objects(values, name)
    if vectors is not None:
        return vectors
    if hasattr(values, "__arrow_c_stream__"):
        return pa.chunked_array(values)
    if hasattr(values, "__arrow_c_array__"):
        return pa.array(values)
    return pa.array(values if not isinstance(values, range) else list(values))


def _vectors_of_objects(values: Any, name: str) -> pa.Array | None:
    """A sequence of arrays of one length, some of them perhaps None, as a column of vectors. None if it is not that."""
    try:
        items = list(values)
    except TypeError:
        raise TypeError(f"column {name} is {type(values).__name__}, which has no rows") from None
    arrays = [None if item is None else _vector_of(item) for item in items]
    present = [array for array in arrays if array is not None]
    if not present or len(present) < sum(item is not None for item in items):
        return None
    if len({(array.shape, array.dtype) for array in present}) > 1:
        return None
    stored = _vectors.stored(np.stack(present), f"column {name}")
    if len(present) == len(items):
        return stored
    places = np.cumsum([array is not None for array in arrays]) - 1
    return stored.take(
        pa.array([int(place) if array is not None else None for place, array in zip(places, arrays, strict=True)])
    )


def _vector_of(item: Any) -> np.ndarray | None:
    array = _vectors.as_numpy(item)
    if array is None and isinstance(item, list | tuple) and item and all(isinstance(number, float) for number in item):
        array = np.asarray(item, np.float32)
    return array if array is not None and array.ndim == 1 and array.size and array.dtype.kind in "fiu" else None


def _table_of_pandas(frame: Any) -> pa.Table:
    if not frame.columns.is_unique:
        raise ValueError("two columns of the data frame have one name; rename one of them")
    columns = {}
    for name in frame.columns:
        series = frame[name]
        vectors = _vectors_of_objects(series, str(name)) if series.dtype == object else None
        columns[str(name)] = vectors if vectors is not None else pa.array(series, from_pandas=True)
    return _plain(pa.table(columns).to_reader()).read_all()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that a table column has: no views, no large offsets, no dictionaries, all of which are layouts only."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(i).with_type(_plain_type(kind.field(i).type)) for i in range(kind.num_fields)])
    return kind


def _plain(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    schema = pa.schema([field.with_type(_plain_type(field.type)) for field in reader.schema])
    if schema.equals(reader.schema):
        return reader
    batches = (
        pa.record_batch([_plain_array(piece.column(i), field.type) for i, field in enumerate(schema)], schema=schema)
        for batch in reader
        for piece in _halves(batch)
    )
    return pa.RecordBatchReader.from_batches(schema, batches)


def _plain_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(array, pa.DictionaryArray):  # Arrow cannot decode a dictionary of views itself.
        return array.dictionary.cast(kind).take(array.indices)
    return array.cast(kind)


def _slices(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        yield from _halves(batch)


def _halves(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices that are small enough, unless a single row is not."""
    try:
        is_small = batch.nbytes <= _BATCH_BYTES_MAX
    except pa.ArrowException:  # Older versions of Arrow cannot tell for views; the buffers may be those of more rows.
        pieces = -(-batch.get_total_buffer_size() // _BATCH_BYTES_MAX)
        rows = max(1, -(-batch.num_rows // max(1, pieces)))
        yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))
        return
    if is_small or batch.num_rows <= 1:
        yield batch
        return
    middle = batch.num_rows // 2
    yield from _halves(batch.slice(0, middle))
    yield from _halves(batch.slice(middle))
