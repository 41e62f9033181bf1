"""Tables of Sagitta as Polars lazy frames: only the columns and rows that a query needs are fetched.

import polars as pl
import sagitta.polars
docs = sagitta.polars.scan("grpc://127.0.0.1:32100", "docs")
docs.filter(pl.col("tenant") == 7).select("id", "title").collect()
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from . import _predicate as predicates
from . import _sql
from ._connection import Connection, connect

__all__ = ["scan", "scan_query"]

_OPERATORS = {"Eq": "=", "NotEq": "<>", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_CLOSED = {"Both": (">=", "<="), "Left": (">=", "<"), "Right": (">", "<="), "None": (">", "<")}
_INTEGERS = frozenset(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
_UNITS = {"Milliseconds": ("ms", 1_000), "Microseconds": ("us", 1)}
_EPOCH = datetime.datetime(1970, 1, 1)


def scan(connection: Connection | str, table: str | Sequence[str], *, schema: str | None = None) -> pl.LazyFrame:
    """A table or view as a lazy frame.

    `connection`: one that stays open while the frame is used, or an address, to which each collection opens a
    connection of its own. Fetched are the columns that the query uses, the first rows if it wants no more (`head`), and
    the rows that pass what of the filter the server can apply: comparisons of a column with a constant, `is_in`,
    `is_between`, `is_null`, joined by and, or, not. Polars applies the whole filter to what comes back.
    """
    with _connected(connection) as server:
        source = server._qualified(table, schema)
    return _lazy(connection, source)


def scan_query(connection: Connection | str, sql: str) -> pl.LazyFrame:
    """The rows of a SELECT as a lazy frame: columns, filters and `head` are put around it, as in `scan`."""
    return _lazy(connection, f"({sql.strip().rstrip(';')}\n) AS q")


def _lazy(connection: Connection | str, source: str) -> pl.LazyFrame:
    with _connected(connection) as server:
        empty = server.query(f"SELECT * FROM {source} LIMIT 0")
    fields = {field.name: field for field in empty.schema}
    frame = pl.from_arrow(empty)

    def batches(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        sql = scan_sql(source, fields, with_columns, predicate, n_rows)
        with _connected(connection) as server, server.stream(sql) as reader:
            for batch in reader:
                part = pl.from_arrow(batch)
                if predicate is not None:
                    part = part.filter(predicate)
                yield part if with_columns is None else part.select(with_columns)

    return register_io_source(batches, schema=frame.schema)


@contextmanager
def _connected(connection: Connection | str) -> Iterator[Connection]:
    if isinstance(connection, str):
        with connect(connection) as own:
            yield own
    else:
        yield connection


def scan_sql(
    source: str,
    fields: Mapping[str, pa.Field],
    with_columns: Sequence[str] | None,
    predicate: pl.Expr | None,
    n_rows: int | None,
) -> str:
    """The statement that fetches what Polars asks for, or more."""
    wanted = list(fields) if with_columns is None else list(with_columns)
    if predicate is not None:
        wanted += [name for name in predicate.meta.root_names() if name not in wanted]
    # Something must be selected, also for a count of rows alone.
    listed = _sql.columns([name for name in fields if name in set(wanted)] or list(fields)[:1])
    sql = f"SELECT {listed} FROM {source}"
    if n_rows is not None:
        # These rows are counted before the filter: none of it may go to the server.
        return f"{sql} LIMIT {n_rows}"
    pushed = translate(predicate, fields) if predicate is not None else None
    return sql if pushed is None else f"{sql} WHERE {pushed.sql}"


def translate(predicate: pl.Expr, fields: Mapping[str, pa.Field]) -> predicates.Pushed | None:
    """What of a predicate can be pushed; None if nothing of it, or if this version of Polars writes it in another way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The format is not promised to stay; what is not understood is not pushed.
            tree = json.loads(predicate.meta.serialize(format="json"))
    except (ValueError, pl.exceptions.PolarsError):
        return None
    return _condition(tree, fields)


def _condition(node: Any, fields: Mapping[str, pa.Field]) -> predicates.Pushed | None:
    """One node, None if it is not what it is expected to be."""
    try:
        return _understood(node, fields)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _understood(node: Any, fields: Mapping[str, pa.Field]) -> predicates.Pushed | None:
    (kind, body), *_ = node.items()
    if kind == "Column":
        return predicates.is_true(fields[body])
    if kind == "BinaryExpr":
        return _binary(body, fields)
    if kind == "Function":
        return _function(body, fields)
    if kind == "Alias":
        return _condition(body[0], fields)
    return None


def _binary(body: Any, fields: Mapping[str, pa.Field]) -> predicates.Pushed | None:
    operator, left, right = body["op"], body["left"], body["right"]
    if operator in ("And", "LogicalAnd"):
        return predicates.all_of([_condition(left, fields), _condition(right, fields)])
    if operator in ("Or", "LogicalOr"):
        return predicates.any_of([_condition(left, fields), _condition(right, fields)])
    if operator not in _OPERATORS:
        return None
    operator = _OPERATORS[operator]
    if "Column" in right:
        left, right, operator = right, left, predicates.mirrored(operator)
    if "Column" not in left or "Literal" not in right:
        return None
    return _compare(fields[left["Column"]], operator, right)


def _compare(field: pa.Field, operator: str, literal: Any) -> predicates.Pushed | None:
    value = _value(literal, field.type)
    return None if value is None else predicates.compare(field, operator, value)


def _function(body: Any, fields: Mapping[str, pa.Field]) -> predicates.Pushed | None:
    function, inputs = body["function"]["Boolean"], body["input"]
    if function == "Not":
        return predicates.negated(_condition(inputs[0], fields))
    if "Column" not in inputs[0]:
        return None
    field = fields[inputs[0]["Column"]]
    if function == "IsNull":
        return predicates.is_null(field)
    if function == "IsNotNull":
        return predicates.is_not_null(field)
    if isinstance(function, dict) and "IsBetween" in function:
        above, below = _CLOSED[function["IsBetween"]["closed"]]
        return predicates.all_of([_compare(field, above, inputs[1]), _compare(field, below, inputs[2])])
    if isinstance(function, dict) and function.get("IsIn", {}).get("nulls_equal") is False:
        return _is_in(field, inputs[1])
    return None


def _is_in(field: pa.Field, literal: Any) -> predicates.Pushed | None:
    """The values are an Arrow stream of one row that holds their list."""
    stream = literal["Literal"]["Scalar"]["List"]
    with pa.ipc.open_stream(bytes(stream)) as reader:
        values = reader.read_all().column(0)
    # Only values of the column's own type: no engine converts any then.
    if len(values) == 0 or values.null_count or values.type != _type_in_polars(field.type):
        return None
    return predicates.is_in(field, values.to_pylist())


def _type_in_polars(kind: pa.DataType) -> pa.DataType:
    return pa.string_view() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else kind


def _value(node: Any, kind: pa.DataType) -> Any:
    """A constant of the type of a column as Python has it. None if it is of another type, or NULL."""
    literal = node["Literal"]
    if "Scalar" not in literal:
        return None
    ((name, value), *_) = literal["Scalar"].items()
    if name in _INTEGERS:
        return value if pa.types.is_integer(kind) and str(kind) == name.lower() else None
    if name == "Float64":
        return float(value) if pa.types.is_float64(kind) else None
    if name == "Float32":
        return _float32(value) if pa.types.is_float32(kind) else None
    if name == "Boolean" or name == "String":
        return value
    if name == "Date":
        return _EPOCH.date() + datetime.timedelta(days=value) if pa.types.is_date32(kind) else None
    if name == "Datetime":
        return _timestamp(*value, kind)
    return None


def _float32(value: float) -> float:
    """Text has the shortest digits that name the float32; this is its value."""
    return pa.scalar(value, pa.float32()).as_py()


def _timestamp(count: int, unit: str, zone: Any, kind: pa.DataType) -> datetime.datetime | None:
    if zone is not None or unit not in _UNITS or not pa.types.is_timestamp(kind):
        return None
    name, microseconds = _UNITS[unit]
    return _EPOCH + datetime.timedelta(microseconds=count * microseconds) if kind.unit == name else None
