"""SQL text that is made here: names, constants, and what kind of statement a text is.

Whatever a program passes as a name or a value goes through `identifier` or `literal`; nothing else is put into SQL.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

# Statements that answer with a count, not with rows. Everything else is asked for rows: the server runs it once either way.
_WITHOUT_ROWS = frozenset(
    """ALTER ATTACH BEGIN COMMENT COMMIT COPY CREATE DEALLOCATE DELETE DETACH DROP GRANT INSERT KILL MERGE PREPARE REINDEX
    RELEASE RENAME RESET RESTORE REVOKE ROLLBACK SAVEPOINT SET START TRUNCATE UPDATE USE""".split()
)
_CHANGES = frozenset(
    ["ALTER", "COPY", "CREATE", "DELETE", "DROP", "INSERT", "MERGE", "RENAME", "RESTORE", "TRUNCATE", "UPDATE"]
)

_TOKEN = re.compile(
    r"""\s+
      | --[^\n]*
      | (?P<comment>/\*)
      | (?P<dollar>\$(?:[A-Za-z_]\w*)?\$)
      | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*')
      | '(?:[^']|'')*'
      | "(?:[^"]|"")*"
      | (?P<word>[^\W\d]\w*)
      | .""",
    re.VERBOSE | re.DOTALL,
)


class Relation(NamedTuple):
    """A table or a view of the database, as `Connection.tables()` lists it; every method that takes a table takes it."""

    schema: str
    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def identifier(name: str) -> str:
    """`name` as SQL, in quotes: exactly this name, its case kept.

    Raises:
        ValueError: the name is empty or holds a NUL.
    """
    if not isinstance(name, str):
        raise TypeError(f"a name is text, not {type(name).__name__}")
    if not name or "\0" in name:
        raise ValueError(f"{name!r} cannot be a name; a name has at least one character and no NUL")
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """`value` as a SQL string.

    Raises:
        ValueError: it holds a NUL, which no SQL text can.
    """
    if "\0" in value:
        raise ValueError("text with a NUL character cannot be written in SQL; pass it as a parameter")
    return "'" + value.replace("'", "''") + "'"


def literal(value: Any) -> str:
    """A Python or NumPy value as a SQL constant of the same type.

    Raises:
        TypeError: there is no such constant; pass the value as a parameter instead.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"CAST({text(repr(value))} AS DOUBLE)"
    if isinstance(value, str):
        return text(value)
    if isinstance(value, uuid.UUID):
        return text(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return f"X'{bytes(value).hex()}'"
    if isinstance(value, decimal.Decimal):
        return _decimal(value)
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            return f"TIMESTAMPTZ {text(value.astimezone(datetime.timezone.utc).isoformat(sep=' '))}"
        return f"TIMESTAMP {text(value.isoformat(sep=' '))}"
    if isinstance(value, datetime.date):
        return f"DATE {text(value.isoformat())}"
    raise TypeError(f"there is no SQL constant for {type(value).__name__}; pass it as a parameter: $1")


def _decimal(value: decimal.Decimal) -> str:
    if not value.is_finite():
        raise TypeError(f"DECIMAL has no {value}; pass a float")
    _, digits, exponent = value.as_tuple()
    scale = max(0, -int(exponent))
    precision = max(len(digits) + max(0, int(exponent)), scale, 1)
    if precision > 38:
        raise TypeError(f"{value} has {precision} digits, DECIMAL has at most 38; pass a float or text")
    return f"CAST('{value:f}' AS DECIMAL({precision}, {scale}))"


def name_parts(table: str | Sequence[str], schema: str | None = None) -> tuple[str | None, str]:
    """Schema (None: the session's) and name of a table.

    `table` is `"docs"`, `"lab.docs"`, a `Relation`, or `("lab", "docs")`, which is how a name with a dot in it is
    written. Names are exact: nothing is folded to lower case.
    """
    if isinstance(table, Relation):
        parts: list[str] = [table.schema, table.name]
    elif isinstance(table, str):
        parts = table.split(".")
    else:
        parts = list(table)
    if len(parts) == 3 and parts[0] == "sagitta":
        parts = parts[1:]
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, str) and part for part in parts):
        raise ValueError(f"{table!r} is no name of a table; write 'table', 'schema.table' or ('schema', 'table')")
    if len(parts) == 2:
        if schema is not None and schema != parts[0]:
            raise ValueError(f"the table is in the schema {parts[0]!r} by its name and in {schema!r} by the argument")
        return parts[0], parts[1]
    return schema, parts[0]


def qualified(table: str | Sequence[str], schema: str | None = None) -> str:
    """The quoted name of a table, as `name_parts` reads it."""
    owner, name = name_parts(table, schema)
    return f"{identifier(owner)}.{identifier(name)}" if owner is not None else identifier(name)


def columns(names: Sequence[str] | None) -> str:
    """A SELECT list; all columns if no names are given."""
    if names is None:
        return "*"
    if isinstance(names, str):
        raise TypeError(f"columns is a list of names; write [{names!r}]")
    return ", ".join(identifier(name) for name in names)


def words(sql: str) -> Iterator[str]:
    """The bare words of a statement in upper case: no comments, strings or quoted names."""
    position = 0
    while position < len(sql):
        match = _TOKEN.match(sql, position)
        if match is None:  # Only an unfinished string or name: the server says what is wrong with it.
            return
        position = match.end()
        if match["comment"]:
            position = _comment_end(sql, position)
        elif match["dollar"]:
            end = sql.find(match["dollar"], position)
            position = len(sql) if end < 0 else end + len(match["dollar"])
        elif match["word"]:
            yield match["word"].upper()


def _comment_end(sql: str, position: int) -> int:
    """Where a block comment ends; comments nest."""
    depth = 1
    for mark in re.finditer(r"/\*|\*/", sql[position:]):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return position + mark.end()
    return len(sql)


def returns_rows(sql: str) -> bool:
    """Whether a statement is to be asked for rows; if not, it answers with a count of rows or nothing."""
    found = words(sql)
    first = next(found, "")
    return first not in _WITHOUT_ROWS or "RETURNING" in found


def writes_rows(sql: Any) -> bool:
    """Whether a statement changes rows of a table, and no definition."""
    return isinstance(sql, str) and next(words(sql), "") in ("INSERT", "UPDATE", "MERGE")


def changes(sql: Any) -> bool:
    """Whether a statement changes the database."""
    return isinstance(sql, str) and next(words(sql), "") in _CHANGES
