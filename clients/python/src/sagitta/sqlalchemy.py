"""SQLAlchemy on Sagitta: `create_engine("sagitta://user:password@host:32100/schema")`.

    from sqlalchemy import create_engine, select
    from sagitta.sqlalchemy import VECTOR
    statement = select(docs).order_by(docs.c.emb.cosine_distance(query_vector)).limit(10)

The language is PostgreSQL's. There are no transactions: each statement is committed when it returns, and a rollback after a
change warns that it undid nothing. Primary keys are enforced; foreign keys, UNIQUE, CHECK and indexes are refused by the
server, unless the engine is made with `ignore_constraints=True`, which leaves them out of CREATE TABLE.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import exc, types
from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS, PGCompiler, PGTypeCompiler
from sqlalchemy.engine import default, reflection
from sqlalchemy.sql import compiler

from . import _sql

__all__ = ["BITVECTOR", "VECTOR", "SagittaDialect"]

_ELEMENTS = ("FLOAT32", "FLOAT16", "INT8", "UINT8")


# --- Types ------------------------------------------------------------------------------------------------------------


class _Vector(types.UserDefinedType):
    """What vectors and bit vectors share."""

    cache_ok = True

    def compare_values(self, x: Any, y: Any) -> bool:
        """Whether two vectors are equal, for the ORM."""
        if x is None or y is None:
            return x is y
        return np.array_equal(np.asarray(x), np.asarray(y))

    def result_processor(self, dialect, coltype):
        """Vectors come as NumPy arrays."""
        dtype = self._dtype
        return lambda value: None if value is None else np.asarray(value, dtype)

    class comparator_factory(types.UserDefinedType.Comparator):
        """The distances of a column from a vector, as SQL operators: `order_by(column.cosine_distance(vector))`."""

        def _distance(self, operator: str, other: Any):
            return self.op(operator, precedence=10, return_type=types.Double())(other)


class VECTOR(_Vector):
    """`VECTOR(dimensions, element)`. Values are NumPy arrays or lists of numbers; `element` is FLOAT32, FLOAT16, INT8 or
    UINT8."""

    __visit_name__ = "VECTOR"
    cache_ok = True  # SQLAlchemy looks at the class itself.

    def __init__(self, dimensions: int | None = None, element: str = "FLOAT32"):
        element = element.upper()
        if element not in _ELEMENTS:
            raise ValueError(f"the element of a vector is one of {', '.join(_ELEMENTS)}, not {element!r}")
        self.dimensions, self.element = dimensions, element

    @property
    def _dtype(self):
        return np.dtype(self.element.lower())

    @property
    def python_type(self) -> type:
        """NumPy's array."""
        return np.ndarray

    def get_col_spec(self, **_: Any) -> str:
        """The type in SQL."""
        if self.dimensions is None:
            raise exc.CompileError("VECTOR needs its number of dimensions to be a column; write VECTOR(384)")
        return f"VECTOR({self.dimensions}{'' if self.element == 'FLOAT32' else ', ' + self.element})"

    def bind_processor(self, dialect):
        """Lists become arrays of the element's type."""
        dtype, dimensions = self._dtype, self.dimensions

        def process(value: Any) -> Any:
            if value is None or isinstance(value, str):
                return value
            array = np.asarray(value)
            if array.ndim != 1 or (dimensions is not None and array.size != dimensions):
                raise ValueError(f"the value has the shape {array.shape}, the column is VECTOR({dimensions})")
            cast = array.astype(dtype)
            if dtype.kind in "iu" and not np.array_equal(cast, array):
                raise ValueError(f"the value has elements that are no {dtype}; round and clip them first")
            return cast

        return process

    def literal_processor(self, dialect):
        """A vector as SQL text."""
        return lambda value: _sql.text("[" + ",".join(repr(number) for number in np.asarray(value).tolist()) + "]")

    class comparator_factory(_Vector.comparator_factory):
        """Distances; smaller is closer in all of them."""

        def l2_distance(self, other: Any):
            """Euclidean: `<->`."""
            return self._distance("<->", other)

        def cosine_distance(self, other: Any):
            """1 - cosine: `<=>`."""
            return self._distance("<=>", other)

        def max_inner_product(self, other: Any):
            """The negative inner product: `<#>`."""
            return self._distance("<#>", other)

        def l1_distance(self, other: Any):
            """Taxicab: `<+>`."""
            return self._distance("<+>", other)


class BITVECTOR(_Vector):
    """`BITVECTOR(dimensions)`. Values are text of 0 and 1; results are NumPy arrays of packed bytes."""

    __visit_name__ = "BITVECTOR"
    cache_ok = True
    _dtype = np.dtype("uint8")

    def __init__(self, dimensions: int | None = None):
        self.dimensions = dimensions

    def get_col_spec(self, **_: Any) -> str:
        """The type in SQL."""
        if self.dimensions is None:
            raise exc.CompileError("BITVECTOR needs its number of dimensions to be a column; write BITVECTOR(1024)")
        return f"BITVECTOR({self.dimensions})"

    def literal_processor(self, dialect):
        """The bits as SQL text."""
        return _sql.text

    class comparator_factory(_Vector.comparator_factory):
        """Distances between bit vectors."""

        def hamming_distance(self, other: Any):
            """Bits that differ: `<~>`."""
            return self._distance("<~>", other)

        def jaccard_distance(self, other: Any):
            """1 - the share of common bits: `<%>`."""
            return self._distance("<%>", other)


class TINYINT(types.Integer):
    """One byte, as it is reflected."""

    __visit_name__ = "TINYINT"


_NAMES: dict[str, Any] = {
    "BOOLEAN": sa.BOOLEAN,
    "TINYINT": TINYINT,
    "SMALLINT": sa.SMALLINT,
    "INTEGER": sa.INTEGER,
    "BIGINT": sa.BIGINT,
    "TINYINT UNSIGNED": sa.SMALLINT,
    "SMALLINT UNSIGNED": sa.INTEGER,
    "INTEGER UNSIGNED": sa.BIGINT,
    "BIGINT UNSIGNED": lambda: sa.NUMERIC(20, 0),
    "FLOAT16": sa.REAL,
    "REAL": sa.REAL,
    "DOUBLE": sa.DOUBLE_PRECISION,
    "TEXT": sa.TEXT,
    "BYTEA": sa.LargeBinary,
    "DATE": sa.DATE,
    "INTERVAL": sa.Interval,
}
_SHAPES = (
    (r"VECTOR\((\d+)(?:, (\w+))?\)", lambda d, element: VECTOR(int(d), element or "FLOAT32")),
    (r"HALFVEC\((\d+)\)", lambda d: VECTOR(int(d), "FLOAT16")),
    (r"BITVECTOR\((\d+)\)", lambda d: BITVECTOR(int(d))),
    (r"VARCHAR\((\d+)\)", lambda length: sa.VARCHAR(int(length))),
    (r"DECIMAL\((\d+), (-?\d+)\)", lambda precision, scale: sa.NUMERIC(int(precision), int(scale))),
    (r"TIME(?:\(\d\))?()", lambda _: sa.TIME()),
    (r"TIMESTAMP(?:\(\d\))?()", lambda _: sa.TIMESTAMP()),
    (r"TIMESTAMP(?:\(\d\))? WITH TIME ZONE()", lambda _: sa.TIMESTAMP(timezone=True)),
)


def type_of(name: str) -> types.TypeEngine:
    """The type that `information_schema.columns.data_type` names; NullType if SQLAlchemy has none."""
    if name in _NAMES:
        return _NAMES[name]()
    if name.endswith("[]"):
        item = type_of(name[:-2])
        return item if isinstance(item, types.NullType) else sa.ARRAY(item)
    for shape, make in _SHAPES:
        match = re.fullmatch(shape, name)
        if match:
            return make(*match.groups())
    return types.NullType()


# --- Compilers --------------------------------------------------------------------------------------------------------


class SagittaCompiler(PGCompiler):
    """Statements: PostgreSQL's."""

    def visit_sequence(self, sequence, **_):
        """There are no sequences."""
        raise exc.CompileError(f"there are no sequences, so {sequence.name} has no next value; choose the keys in the program")

    def for_update_clause(self, select, **_):
        """There are no row locks; the server would refuse them too."""
        raise exc.CompileError("FOR UPDATE: there are no transactions, so rows cannot be locked; leave with_for_update() out")


class SagittaTypeCompiler(PGTypeCompiler):
    """Types: PostgreSQL's, with vectors."""

    def visit_VECTOR(self, type_, **_):
        """VECTOR."""
        return type_.get_col_spec()

    def visit_BITVECTOR(self, type_, **_):
        """BITVECTOR."""
        return type_.get_col_spec()

    def visit_TINYINT(self, type_, **_):
        """One byte."""
        return "TINYINT"

    def visit_TIMESTAMP(self, type_, **_):
        """Microseconds, which is what Python's datetime counts."""
        return "TIMESTAMP WITH TIME ZONE" if type_.timezone else "TIMESTAMP"

    def visit_TIME(self, type_, **_):
        """A time of day; a zone cannot be kept."""
        if type_.timezone:
            raise exc.CompileError("TIME WITH TIME ZONE cannot be stored; use DateTime(timezone=True)")
        return "TIME"

    def visit_FLOAT(self, type_, **_):
        """REAL up to 24 bits, DOUBLE PRECISION above and if nothing is said."""
        return "REAL" if type_.precision is not None and type_.precision <= 24 else "DOUBLE PRECISION"

    def visit_double(self, type_, **_):
        """64 bits."""
        return "DOUBLE PRECISION"

    def visit_CHAR(self, type_, **_):
        """Text of any length: padding is nobody's wish."""
        return "TEXT"

    def visit_enum(self, type_, **_):
        """The names of an enumeration are text."""
        return "TEXT"

    visit_ENUM = visit_enum
    visit_NVARCHAR = visit_NCHAR = visit_CHAR

    def visit_VARCHAR(self, type_, **_):
        """Text, of a greatest length if one is given."""
        return f"VARCHAR({type_.length})" if type_.length else "TEXT"

    def visit_JSON(self, type_, **_):
        """JSON is not a type here."""
        raise exc.CompileError("there is no JSON type; keep the document in a Text column")

    visit_JSONB = visit_JSON

    def visit_uuid(self, type_, **_):
        """Text, as there is no such type."""
        return "TEXT"

    visit_UUID = visit_uuid


class SagittaDDLCompiler(compiler.DDLCompiler):
    """Definitions. What is not enforced is refused by the server; `ignore_constraints` leaves it out here."""

    def create_table_constraints(self, table, _include_foreign_key_constraints=None, **kw):
        """The primary key, and what the server will refuse unless it is left out."""
        if self.dialect.ignore_constraints:
            return self.process(table.primary_key) if len(table.primary_key) else ""
        return super().create_table_constraints(table, _include_foreign_key_constraints, **kw)

    def get_column_specification(self, column, **kwargs):
        """A column; a key that the server would have to make is refused."""
        if column.identity is not None and not self.dialect.ignore_constraints:
            raise exc.CompileError(f"{column} is an IDENTITY, and there are no generated keys; choose the keys in the program")
        return super().get_column_specification(column, **kwargs)

    def visit_column_check_constraint(self, constraint, **kw):
        """Refused by the server."""
        return "" if self.dialect.ignore_constraints else super().visit_column_check_constraint(constraint, **kw)

    def visit_create_index(self, create, **kw):
        """Refused by the server; where it is left out, a statement that does nothing."""
        return "SELECT 1" if self.dialect.ignore_constraints else super().visit_create_index(create, **kw)

    def visit_drop_index(self, drop, **kw):
        """As `visit_create_index`."""
        return "SELECT 1" if self.dialect.ignore_constraints else super().visit_drop_index(drop, **kw)

    def visit_add_constraint(self, create, **kw):
        """As `visit_create_index`."""
        return "SELECT 1" if self.dialect.ignore_constraints else super().visit_add_constraint(create, **kw)

    def visit_drop_constraint(self, drop, **kw):
        """As `visit_create_index`."""
        return "SELECT 1" if self.dialect.ignore_constraints else super().visit_drop_constraint(drop, **kw)

    def visit_computed_column(self, generated, **kw):
        """There are no computed columns."""
        raise exc.CompileError("there are no computed columns; use a view")

    def visit_primary_key_constraint(self, constraint, **kw):
        """PRIMARY KEY, without a name: keys are called after their table."""
        if not len(constraint):
            return ""
        names = ", ".join(self.preparer.quote(column.name) for column in constraint.columns_autoinc_first)
        return f"PRIMARY KEY ({names})"


class SagittaIdentifierPreparer(compiler.IdentifierPreparer):
    """Names: folded to lower case by the server unless quoted."""

    reserved_words = RESERVED_WORDS | {"vector", "bitvector", "version", "values", "qualify"}


# --- The dialect ------------------------------------------------------------------------------------------------------


class SagittaDialect(default.DefaultDialect):
    """The dialect `sagitta`."""

    name = "sagitta"
    driver = "flightsql"
    supports_statement_cache = True
    default_paramstyle = "qmark"

    statement_compiler = SagittaCompiler
    type_compiler_cls = SagittaTypeCompiler
    ddl_compiler = SagittaDDLCompiler
    preparer = SagittaIdentifierPreparer
    ischema_names = _NAMES
    _backslash_escapes = False  # What PostgreSQL's compiler asks its dialect.

    supports_alter = True
    supports_comments = False
    supports_schemas = True
    supports_views = True
    supports_sequences = False
    supports_identity_columns = False
    supports_native_boolean = True
    supports_native_decimal = True
    supports_native_enum = False
    supports_native_uuid = False
    supports_default_values = False
    supports_default_metavalue = True
    supports_empty_insert = False
    supports_multivalues_insert = True
    supports_is_distinct_from = True
    supports_sane_rowcount = True
    supports_sane_multi_rowcount = True
    supports_sane_rowcount_returning = False
    supports_simple_order_by_label = True
    insert_returning = True
    update_returning = True
    delete_returning = True
    update_returning_multifrom = True
    delete_returning_multifrom = True
    insert_executemany_returning = True
    use_insertmanyvalues = True
    postfetch_lastrowid = False
    requires_name_normalize = False
    cte_follows_insert = True
    div_is_floordiv = True
    inline_comments = False
    tuple_in_values = True

    def __init__(self, ignore_constraints: bool = False, **options: Any):
        super().__init__(**options)
        self.ignore_constraints = ignore_constraints

    @classmethod
    def import_dbapi(cls):
        """The DB-API module."""
        import sagitta

        return sagitta

    def create_connect_args(self, url):
        """`sagitta://user:password@host:port/schema?transport=tls&token=…&tls_root_certs=…`"""
        query = dict(url.query)
        transport = query.pop("transport", None)
        host = url.host or "127.0.0.1"
        address = f"sagitta://[{host}]" if ":" in host else f"sagitta://{host}"
        address += f":{url.port}" if url.port else ""
        address += f"/{urllib.parse.quote(url.database, safe='')}" if url.database else ""
        address += f"?transport={transport}" if transport else ""
        options: dict[str, Any] = {"uri": address, "user": url.username, "password": url.password}
        known = ("token", "tls_root_certs", "tls_client_cert", "tls_client_key", "tls_server_name")
        for name, value in query.items():
            if name == "tls_skip_verify":
                options[name] = value == "true"
            elif name == "ignore_constraints":
                self.ignore_constraints = value == "true"
            elif name in known:
                options[name] = value
            else:
                listed = ", ".join(("transport", *known, "tls_skip_verify", "ignore_constraints"))
                raise exc.ArgumentError(f"the address has an option {name}, which is not known; there are {listed}")
        return (), options

    # Transactions: there are none.

    def do_begin(self, dbapi_connection):
        """Nothing: a statement begins when it runs."""

    def do_rollback(self, dbapi_connection):
        """Nothing can be undone; warns if there was something to undo."""
        try:
            dbapi_connection.rollback()
        except self.loaded_dbapi.NotSupportedError as error:
            sa.util.warn(str(error))

    def do_savepoint(self, connection, name):
        """There are no savepoints."""
        raise exc.NotSupportedError(
            "SAVEPOINT", None, NotImplementedError("there are no transactions; leave begin_nested() out")
        )

    def get_isolation_level_values(self, dbapi_connection):
        """Each statement is its own transaction."""
        return ["AUTOCOMMIT"]

    def get_isolation_level(self, dbapi_connection):
        """Each statement is its own transaction."""
        return "AUTOCOMMIT"

    def get_default_isolation_level(self, dbapi_conn):
        """Each statement is its own transaction."""
        return "AUTOCOMMIT"

    def set_isolation_level(self, dbapi_connection, level):
        """Nothing: there is one level."""

    # The server.

    def _get_server_version_info(self, connection):
        version = connection.connection.dbapi_connection.adbc_get_info().get("vendor_version") or ""
        return tuple(int(number) for number in re.findall(r"\d+", version)[:3])

    def _get_default_schema_name(self, connection):
        dbapi_connection = connection.connection.dbapi_connection
        return dbapi_connection._schema or "public"

    def do_ping(self, dbapi_connection):
        """One round trip."""
        cursor = dbapi_connection.cursor()
        try:
            cursor.execute("SELECT 1")
            cursor.fetchall()
        finally:
            cursor.close()
        return True

    def is_disconnect(self, e, connection, cursor):
        """Whether a connection is of no more use."""
        text = str(e)
        return isinstance(e, self.loaded_dbapi.Error) and any(
            sign in text
            for sign in ("(Unavailable;", "connection error", "(Unauthenticated;", "AdbcConnection has been closed")
        )

    # Reflection.

    def _rows(self, connection, sql: str, *names: str) -> Sequence[Any]:
        return connection.exec_driver_sql(sql, tuple(names)).fetchall()

    @reflection.cache
    def get_schema_names(self, connection, **kw):
        """All schemas."""
        return [row[0] for row in self._rows(connection, "SELECT schema_name FROM information_schema.schemata ORDER BY 1")]

    def _relations(self, connection, schema: str | None, *kinds: str) -> list[str]:
        sql = (
            "SELECT table_name FROM information_schema.tables WHERE table_schema = ? "
            f"AND table_type IN ({', '.join(map(_sql.text, kinds))}) ORDER BY table_name"
        )
        return [row[0] for row in self._rows(connection, sql, schema or self.default_schema_name)]

    @reflection.cache
    def get_table_names(self, connection, schema=None, **kw):
        """Tables, those in files elsewhere among them."""
        return self._relations(connection, schema, "BASE TABLE", "FOREIGN")

    @reflection.cache
    def get_view_names(self, connection, schema=None, **kw):
        """Views."""
        return self._relations(connection, schema, "VIEW")

    @reflection.cache
    def get_view_definition(self, connection, view_name, schema=None, **kw):
        """The query of a view."""
        sql = "SELECT view_definition FROM information_schema.views WHERE table_schema = ? AND table_name = ?"
        rows = self._rows(connection, sql, schema or self.default_schema_name, view_name)
        if not rows:
            raise exc.NoSuchTableError(f"{schema}.{view_name}" if schema else view_name)
        return rows[0][0]

    @reflection.cache
    def has_table(self, connection, table_name, schema=None, **kw):
        """Whether there is a table or view."""
        self._ensure_has_table_connection(connection)
        sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = ? AND table_name = ?"
        return bool(self._rows(connection, sql, schema or self.default_schema_name, table_name))

    def has_sequence(self, connection, sequence_name, schema=None, **kw):
        """There are none."""
        return False

    def has_index(self, connection, table_name, index_name, schema=None, **kw):
        """There are none."""
        return False

    @reflection.cache
    def get_columns(self, connection, table_name, schema=None, **kw):
        """The columns of a table or view."""
        sql = (
            "SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns "
            "WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position"
        )
        rows = self._rows(connection, sql, schema or self.default_schema_name, table_name)
        if not rows:
            self._must_exist(connection, table_name, schema)
        return [
            {"name": name, "type": type_of(kind), "nullable": nullable == "YES", "default": value}
            for name, kind, nullable, value in rows
        ]

    @reflection.cache
    def get_pk_constraint(self, connection, table_name, schema=None, **kw):
        """The primary key, in the order of its columns."""
        sql = (
            "SELECT column_name, constraint_name FROM information_schema.key_column_usage "
            "WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position"
        )
        rows = self._rows(connection, sql, schema or self.default_schema_name, table_name)
        if not rows:
            self._must_exist(connection, table_name, schema)
        return {"constrained_columns": [row[0] for row in rows], "name": rows[0][1] if rows else None}

    def _must_exist(self, connection, table_name: str, schema: str | None) -> None:
        if not self.has_table(connection, table_name, schema):
            raise exc.NoSuchTableError(f"{schema}.{table_name}" if schema else table_name)

    def _none_of(self, connection, table_name: str, schema: str | None) -> list[Any]:
        self._must_exist(connection, table_name, schema)
        return []

    @reflection.cache
    def get_foreign_keys(self, connection, table_name, schema=None, **kw):
        """There are none."""
        return self._none_of(connection, table_name, schema)

    @reflection.cache
    def get_indexes(self, connection, table_name, schema=None, **kw):
        """None that SQLAlchemy could use."""
        return self._none_of(connection, table_name, schema)

    @reflection.cache
    def get_unique_constraints(self, connection, table_name, schema=None, **kw):
        """There are none but the primary key."""
        return self._none_of(connection, table_name, schema)

    @reflection.cache
    def get_check_constraints(self, connection, table_name, schema=None, **kw):
        """There are none."""
        return self._none_of(connection, table_name, schema)

    @reflection.cache
    def get_table_comment(self, connection, table_name, schema=None, **kw):
        """There are none."""
        self._must_exist(connection, table_name, schema)
        return {"text": None}

    def get_temp_table_names(self, connection, schema=None, **kw):
        """There are none."""
        return []

    def get_temp_view_names(self, connection, schema=None, **kw):
        """There are none."""
        return []

    def get_sequence_names(self, connection, schema=None, **kw):
        """There are none."""
        return []


dialect = SagittaDialect
