"""Conditions of other libraries as SQL, for reading fewer rows.

A condition is pushed only if no row that the library would keep is lost: the library applies the whole condition to what
comes back, so a condition here may keep too many rows, never too few. `exact` says that it keeps just the right ones; only
such a condition may be negated. None stands for a condition that is not pushed.

What differs between the engines decides the rules. Floats: Sagitta orders them by IEEE 754's total order, in which -0.0
is below 0.0 and a NaN with a sign is below everything; Polars and Spark have one zero, and NaN above everything. Types: a
constant is compared with a column of its own type alone, so that no engine's rules of conversion matter.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from . import _sql

VALUES_MAX = 10_000
"""The longest list of values that is pushed."""

COMPARISONS = ("=", "<>", "<", "<=", ">", ">=")
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "<>": "<>"}
_INTEGER = range(-(2**63), 2**63)


@dataclasses.dataclass(frozen=True)
class Pushed:
    """A SQL condition that keeps every row that is wanted; no others, if `exact`."""

    sql: str
    exact: bool


def mirrored(operator: str) -> str:
    """The comparison with its sides exchanged."""
    return _MIRRORED[operator]


def all_of(conditions: Sequence[Pushed | None]) -> Pushed | None:
    """AND: what cannot be pushed is left out."""
    pushed = [condition for condition in conditions if condition is not None]
    if not pushed:
        return None
    exact = len(pushed) == len(conditions) and all(condition.exact for condition in pushed)
    return Pushed("(" + " AND ".join(condition.sql for condition in pushed) + ")", exact)


def any_of(conditions: Sequence[Pushed | None]) -> Pushed | None:
    """OR: pushed as a whole or not at all."""
    pushed = [condition for condition in conditions if condition is not None]
    if not pushed or len(pushed) < len(conditions):
        return None
    sql = "(" + " OR ".join(condition.sql for condition in pushed) + ")"
    return Pushed(sql, all(condition.exact for condition in pushed))


def negated(condition: Pushed | None) -> Pushed | None:
    """NOT: of an exact condition alone, since a wider one becomes a narrower one."""
    return Pushed(f"(NOT {condition.sql})", True) if condition is not None and condition.exact else None


def is_null(field: pa.Field) -> Pushed:
    """IS NULL."""
    return Pushed(f"({_sql.identifier(field.name)} IS NULL)", True)


def is_not_null(field: pa.Field) -> Pushed:
    """IS NOT NULL."""
    return Pushed(f"({_sql.identifier(field.name)} IS NOT NULL)", True)


def is_true(field: pa.Field) -> Pushed | None:
    """A column of booleans as a condition."""
    return compare(field, "=", True)


def compare(field: pa.Field, operator: str, value: Any) -> Pushed | None:
    """`field operator value`, where the value is of the field's type."""
    if operator not in COMPARISONS:
        return None
    name, kind = _sql.identifier(field.name), field.type
    if pa.types.is_floating(kind):
        return _compare_float(name, kind, operator, value)
    if not _fits(kind, value) or (pa.types.is_boolean(kind) and operator not in ("=", "<>")):
        return None
    return Pushed(f"({name} {operator} {_sql.literal(value)})", True)


def is_in(field: pa.Field, values: Sequence[Any]) -> Pushed | None:
    """`field IN (values)`; none of the values is NULL."""
    values = list(values)
    if not values or len(values) > VALUES_MAX:
        return None
    each = [compare(field, "=", value) for value in values]
    if any(condition is None or not condition.exact for condition in each):
        return None
    listed = ", ".join(_sql.literal(_as_stored(field.type, value)) for value in values)
    return Pushed(f"({_sql.identifier(field.name)} IN ({listed}))", True)


def starts_with(field: pa.Field, prefix: Any) -> Pushed | None:
    """Text that starts with `prefix`."""
    if not _is_text(field.type) or not _fits(field.type, prefix):
        return None
    return Pushed(f"starts_with({_sql.identifier(field.name)}, {_sql.text(prefix)})", True)


def _fits(kind: pa.DataType, value: Any) -> bool:
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool) and value in _INTEGER
    if _is_text(kind):
        return isinstance(value, str) and "\0" not in value
    if pa.types.is_date32(kind):
        return isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    if pa.types.is_timestamp(kind):
        return kind.tz is None and isinstance(value, datetime.datetime) and value.tzinfo is None
    return False


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _compare_float(name: str, kind: pa.DataType, operator: str, value: Any) -> Pushed | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or pa.types.is_float16(kind):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number) or (isinstance(value, int) and int(number) != value):
        return None
    if pa.types.is_float32(kind) and float(np.float32(number)) != number:
        return None
    if operator in ("=", "<>"):
        # Zero is two values for the server: of `<> 0` it keeps one of them, which is too many; of `= 0` it loses one.
        if number == 0:
            return Pushed(f"({name} <> 0.0)", False) if operator == "<>" else None
        return Pushed(f"({name} {operator} {_sql.literal(number)})", True)
    if number == 0 and operator == ">=":
        return None
    condition = f"{name} {operator} {_sql.literal(number + 0.0)}"
    # NaN is the greatest for the library; for the server it is that only if it has no sign.
    return Pushed(f"({condition} OR isnan({name}))" if operator in (">", ">=") else f"({condition})", False)


def _as_stored(kind: pa.DataType, value: Any) -> Any:
    return float(value) if pa.types.is_floating(kind) else value
