"""Client of Sagitta, a SQL engine for embeddings.

    import sagitta
    with sagitta.connect("grpc://127.0.0.1:32100") as connection:
        nearest = connection.search("docs", "emb", query_vector, k=10, filter="tenant = 7")

`connect` gives a DB-API 2.0 connection over ADBC with calls for Arrow, NumPy, pandas and Polars. The modules
`sagitta.polars`, `sagitta.spark` and `sagitta.sqlalchemy` serve those libraries; each is imported on demand.
"""

from adbc_driver_manager.dbapi import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    DatabaseError,
    DataError,
    Date,
    DateFromTicks,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
    Warning,
)

from ._connection import Connection, Cursor, connect
from ._sql import Relation, identifier, literal
from ._vectors import vectors

__version__ = "0.1.0"

apilevel = "2.0"
"""The level of the DB-API."""
threadsafety = 1
"""Threads may share the module, not a connection."""
paramstyle = "qmark"
"""`?` in the SQL; `$1`, `$2` are understood as well."""

Binary = bytes

__all__ = [
    "apilevel", "connect", "paramstyle", "threadsafety",
    "Connection", "Cursor", "Relation", "identifier", "literal", "vectors",
    "BINARY", "DATETIME", "NUMBER", "ROWID", "STRING",
    "Binary", "Date", "DateFromTicks", "Time", "TimeFromTicks", "Timestamp", "TimestampFromTicks",
    "DatabaseError", "DataError", "Error", "IntegrityError", "InterfaceError", "InternalError", "NotSupportedError",
    "OperationalError", "ProgrammingError", "Warning",
]  # fmt: skip
