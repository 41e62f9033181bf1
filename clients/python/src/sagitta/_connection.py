"""Connections: the DB-API of ADBC with vectors as parameters, and the calls that make up most programs."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import adbc_driver_flightsql
import adbc_driver_manager
import adbc_driver_manager.dbapi as adbc
import pyarrow as pa

from . import _ingest, _sql, _vectors
from ._uri import DEFAULT_URI, Target, parse_uri

if TYPE_CHECKING:
    import pandas
    import polars

_MESSAGE_BYTES_MAX = 1 << 30
DEFAULT_SCHEMA = "public"
"""The schema of a name without one."""
_INGEST_MODES = ("create", "append", "replace", "create_append")
_Options = adbc_driver_flightsql.DatabaseOptions


def connect(
    uri: str = DEFAULT_URI,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    tls_root_certs: str | bytes | os.PathLike | None = None,
    tls_client_cert: str | bytes | os.PathLike | None = None,
    tls_client_key: str | bytes | os.PathLike | None = None,
    tls_server_name: str | None = None,
    tls_skip_verify: bool = False,
) -> Connection:
    """Opens a connection to a server and asks it who it is.

    `uri`: see the README for the forms; a user, a password and a schema may be in it. `token`: a bearer token, in place of
    user and password. `settings`: what `Connection.set` takes. `headers`: gRPC headers of every call.
    `tls_root_certs`: the authorities that are trusted, in place of the system's; `tls_client_cert` and `tls_client_key`:
    who this client is. Each is a path or the PEM text. `tls_server_name`: the name that the certificate must hold, if not
    the host's. `tls_skip_verify`: trust any certificate.

    Raises:
        ValueError: the arguments contradict each other.
        Error: no server answers there, or it does not let this user in.
    """
    target = parse_uri(uri)
    login = Login.of(target, user, password, token)
    tls = TlsOptions(tls_root_certs, tls_client_cert, tls_client_key, tls_server_name, tls_skip_verify)
    tls.check(target)
    options = {
        _Options.WITH_MAX_MSG_SIZE.value: str(_MESSAGE_BYTES_MAX),
        _Options.WITH_COOKIE_MIDDLEWARE.value: "true",
        **login.adbc_options(),
        **tls.adbc_options(),
        **{_Options.RPC_CALL_HEADER_PREFIX.value + name: value for name, value in (headers or {}).items()},
    }
    connection = _open(target, options, is_known=login.is_known)
    try:
        if settings:
            connection.set(**settings)
    except BaseException:
        connection.close()
        raise
    return connection


class Login:
    """Who asks: nobody in particular, a user with a password, or whom a token stands for."""

    def __init__(self, user: str | None, password: str | None, token: str | None):
        self.user, self.password, self.token = user, password, token

    @classmethod
    def of(cls, target: Target, user: str | None, password: str | None, token: str | None) -> Login:
        """From the address and the arguments, which must not contradict each other."""
        for what, written, given in (("user", target.user, user), ("password", target.password, password)):
            if written is not None and given is not None and written != given:
                raise ValueError(f"the {what} in the address is not the {what} that is passed; leave one of them out")
        user = user if user is not None else target.user
        password = password if password is not None else target.password
        if token is not None and (user is not None or password is not None):
            raise ValueError("a token says who asks; pass either a token, or a user and a password")
        if password is not None and not user:
            raise ValueError("a password was passed without a user; pass both")
        return cls(user, password, token)

    @property
    def is_known(self) -> bool:
        """Whether it says who asks at all."""
        return self.token is not None or self.user is not None

    def adbc_options(self) -> dict[str, str]:
        """As the ADBC driver takes it."""
        if self.token is not None:
            return {_Options.AUTHORIZATION_HEADER.value: f"Bearer {self.token}"}
        if self.user is not None:
            return {"username": self.user, "password": self.password or ""}
        return {}


class TlsOptions:
    """Whom to trust, and who this client is."""

    def __init__(self, root_certs=None, client_cert=None, client_key=None, server_name=None, skip_verify=False):
        self.root_certs, self.client_cert, self.client_key = map(_pem, (root_certs, client_cert, client_key))
        self.server_name, self.skip_verify = server_name, skip_verify

    def check(self, target: Target) -> None:
        """Refuses options that contradict each other or the address."""
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("tls_client_cert and tls_client_key go together; pass both or none")
        if not target.tls and (self.root_certs or self.client_cert or self.server_name or self.skip_verify):
            raise ValueError(f"{target} is plain text and takes no TLS options; write grpc+tls://{target.address}")

    def adbc_options(self) -> dict[str, str]:
        """As the ADBC driver takes them."""
        options = {
            _Options.TLS_ROOT_CERTS.value: self.root_certs,
            _Options.MTLS_CERT_CHAIN.value: self.client_cert,
            _Options.MTLS_PRIVATE_KEY.value: self.client_key,
            _Options.TLS_OVERRIDE_HOSTNAME.value: self.server_name,
            _Options.TLS_SKIP_VERIFY.value: "true" if self.skip_verify else None,
        }
        return {name: value for name, value in options.items() if value is not None}


def _pem(source: str | bytes | os.PathLike | None) -> str | None:
    """PEM text, from a file unless it is PEM text already."""
    if source is None:
        return None
    if isinstance(source, bytes):
        return source.decode()
    if isinstance(source, str) and "-----BEGIN" in source:
        return source
    with open(source, encoding="ascii") as file:
        return file.read()


def _open(target: Target, options: dict[str, str], *, is_known: bool) -> Connection:
    database = connection = None
    try:
        database = adbc_driver_flightsql.connect(target.location, db_kwargs=options)
        connection = adbc_driver_manager.AdbcConnection(database)
        opened = Connection(database, connection, autocommit=True, target=target)
    except BaseException as error:
        for made in (connection, database):
            if made is not None:
                made.close()
        _explain(target, error)
        raise
    try:
        opened.adbc_get_info()
        _begin_session(opened, target.schema, is_known=is_known)
    except BaseException as error:
        opened.close()
        _explain(target, error)
        raise
    return opened


def _begin_session(connection: Connection, schema: str | None, *, is_known: bool) -> None:
    """Names the schema. A client that says nothing of itself has a session of its own, in a cookie, only from then on."""
    if is_known and schema is None:
        return
    try:
        connection.adbc_current_db_schema = schema or DEFAULT_SCHEMA
    except adbc.NotSupportedError:
        if schema not in (None, DEFAULT_SCHEMA):
            raise


def _explain(target: Target, error: BaseException) -> None:
    """Says at an error of the network what can be done about it."""
    if not isinstance(error, adbc.Error):
        return
    text = str(error)
    hint = None
    if "connection refused" in text or "no such host" in text:
        hint = f"no server answers at {target}; start one with: sagitta serve --listen {target.address}"
    elif "first record does not look like a TLS handshake" in text:
        hint = f"the server at {target.address} is plain text; write grpc://{target.address} or add ?transport=tcp"
    elif "error reading server preface" in text and not target.tls:
        hint = f"the server at {target.address} may be encrypted; write grpc+tls://{target.address}"
    elif "certificate" in text:
        hint = "pass tls_root_certs with the authority that signed the server's certificate"
    elif "option(s) 'schema'" in text:
        hint = "the server has one current schema, public; leave it out of the address, and name it with the table: lab.docs"
    if hint is not None:
        error.args = (f"{error.args[0] if error.args else text}\n{hint}", *error.args[1:])


class Cursor(adbc.Cursor):
    """A DB-API cursor. Parameters are a list: `$1` or `?` in the SQL; vectors are NumPy arrays or lists of numbers."""

    def execute(self, operation: str, parameters: Any = None) -> Cursor:
        """Runs one statement. One that answers with a count of rows sets `rowcount` and has no rows to fetch."""
        if isinstance(operation, bytes):  # A Substrait plan.
            return super().execute(operation, parameters)
        with self._conn._noting_change(operation):
            if _sql.returns_rows(operation):
                return super().execute(operation, _bindable(parameters))
            self._execute_update(operation, _bindable(parameters))
        return self

    def _prepare_execute(self, operation: Any, parameters: Any = None) -> None:
        """As the driver manager does it, but what the server does not support is said: it would be tried unprepared."""
        if isinstance(operation, str) and operation != self._last_query:
            self._last_query = None
            self._stmt.set_sql_query(operation)
            _interruptible(self._stmt.prepare, self._stmt.cancel)
            self._last_query = operation
        super()._prepare_execute(operation, parameters)

    def executemany(self, operation: str, seq_of_parameters: Any) -> None:
        """Runs one statement for each row of parameters: a list of lists, or an Arrow batch or table."""
        if not _is_arrow(seq_of_parameters) and seq_of_parameters is not None:
            seq_of_parameters = _vectors.bound_many(seq_of_parameters)
            if seq_of_parameters is None:
                return
        if _sql.changes(operation):
            self._conn._has_changed = True  # Also if it fails: the rows before may have been carried out.
        with _telling_of_keys(_sql.writes_rows(operation)):
            super().executemany(operation, seq_of_parameters)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows batch by batch; what goes wrong meanwhile is an error of the DB-API."""
        assert self._results is not None
        reader = self._results.reader
        while True:
            try:
                yield _interruptible(reader.read_next_batch, self._stmt.cancel)
            except StopIteration:
                return

    def _execute_update(self, operation: str, parameters: Any) -> None:
        if parameters is not None:
            super().executemany(operation, parameters)
            return
        self._clear()
        self._results = None
        self._last_query = None
        self._stmt.set_sql_query(operation)
        self._rowcount = _interruptible(self._stmt.execute_update, self._stmt.cancel)


def _bindable(parameters: Any) -> Any:
    if parameters is None or _is_arrow(parameters):
        return parameters
    return _vectors.bound(parameters)


def _is_arrow(parameters: Any) -> bool:
    return hasattr(parameters, "__arrow_c_array__") or hasattr(parameters, "__arrow_c_stream__")


@contextlib.contextmanager
def _telling_of_keys(is_write: bool) -> Iterator[None]:
    """What is there already when rows are written is a key: an IntegrityError of the DB-API, not a ProgrammingError."""
    try:
        yield
    except adbc.ProgrammingError as error:
        if not is_write or error.status_code != adbc_driver_manager.AdbcStatusCode.ALREADY_EXISTS:
            raise
        options = {"status_code": error.status_code, "vendor_code": error.vendor_code, "sqlstate": error.sqlstate}
        raise adbc.IntegrityError(str(error), **options, details=error.details) from error


def _interruptible(call, cancel):
    """Runs a blocking call of the driver, so that Ctrl-C cancels the statement."""
    try:
        from adbc_driver_manager import _lib

        return _lib._blocking_call(call, (), {}, cancel)
    except (ImportError, AttributeError):
        return call()


class Connection(adbc.Connection):
    """A connection: everything of the DB-API of ADBC, and the calls below.

    Every statement is its own transaction: `commit` has nothing to do, and `rollback` is an error where something was
    changed. A connection is a session: its settings are its own. Close it, or use it in a `with` block. Names of tables and
    columns that are passed are exact, `"docs"` or `"lab.docs"`; nothing is folded to lower case, and no name can be SQL.
    """

    def __init__(self, db, conn, conn_kwargs=None, *, autocommit=True, target: Target | None = None, **options):
        self._target = target
        self._has_changed = False
        super().__init__(db, conn, conn_kwargs, autocommit=autocommit, **options)

    def __repr__(self) -> str:
        return f"<sagitta.Connection to {self._target}{' (closed)' if self._closed else ''}>"

    def __enter__(self) -> Connection:
        return self

    # --- DB-API -------------------------------------------------------------------------------------------------------

    def cursor(self, *, adbc_stmt_kwargs: Mapping[str, Any] | None = None) -> Cursor:
        """A new cursor."""
        if self._closed:
            raise adbc.ProgrammingError(
                "the connection is closed; call sagitta.connect again",
                status_code=adbc_driver_manager.AdbcStatusCode.INVALID_STATE,
            )
        cursor = Cursor(self, adbc_stmt_kwargs, dbapi_backend=self._backend)
        self._cursors.add(cursor)
        return cursor

    def commit(self) -> None:
        """Nothing: each statement was committed when it returned."""
        self._has_changed = False

    def rollback(self) -> None:
        """Nothing, if nothing was changed since the last `commit`.

        Raises:
            NotSupportedError: something was changed; it cannot be undone, as there are no transactions.
        """
        if self._has_changed:
            self._has_changed = False
            raise adbc.NotSupportedError(
                "rollback cannot undo what was changed: each statement is its own transaction and was committed when it "
                "returned; undo it with another statement, or RESTORE TABLE … TO VERSION"
            )

    @contextlib.contextmanager
    def _noting_change(self, operation: str) -> Iterator[None]:
        """Remembers that a statement changed something, if it was carried out."""
        with _telling_of_keys(_sql.writes_rows(operation)):
            yield
        if _sql.changes(operation):
            self._has_changed = True

    # --- Statements ---------------------------------------------------------------------------------------------------

    def query(self, sql: str, params: Sequence[Any] | None = None) -> pa.Table:
        """The rows of a statement as an Arrow table. `params`: values of `$1`, `$2`, …"""
        with self._asked(sql, params) as cursor:
            return cursor.fetch_arrow_table()

    def query_pandas(self, sql: str, params: Sequence[Any] | None = None) -> pandas.DataFrame:
        """The rows of a statement as a pandas data frame; vectors are NumPy arrays."""
        return self.query(sql, params).to_pandas()

    def query_polars(self, sql: str, params: Sequence[Any] | None = None) -> polars.DataFrame:
        """The rows of a statement as a Polars data frame; vectors are `pl.Array` columns."""
        import polars

        frame = polars.from_arrow(self.query(sql, params))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def stream(self, sql: str, params: Sequence[Any] | None = None) -> pa.RecordBatchReader:
        """The rows of a statement batch by batch, as the server makes them; the whole is never in memory.

        Close the reader, or read it to its end: the statement runs until then.
        """
        cursor = self._asked(sql, params)
        schema = cursor.fetch_record_batch().schema

        def batches() -> Iterator[pa.RecordBatch]:
            with contextlib.closing(cursor):
                yield from cursor.batches()

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        weakref.finalize(reader, cursor.close)  # A reader that is never read does not come to the end above.
        return reader

    def _asked(self, sql: str, params: Sequence[Any] | None) -> Cursor:
        cursor = self.cursor()
        try:
            with self._noting_change(sql):
                adbc.Cursor.execute(cursor, sql, _bindable(params))
        except BaseException:
            cursor.close()
            raise
        return cursor

    def execute(self, sql: str, params: Sequence[Any] | None = None) -> int:  # type: ignore[override]
        """Runs a statement for what it does, and returns how many rows it wrote; -1 if it wrote none or does not say.

        Rows that it answers with are counted and dropped. It is not `adbc_driver_manager`'s `execute`, which returns a
        cursor: that is `connection.cursor().execute(…)`.
        """
        with self.cursor() as cursor:
            cursor.execute(sql, params)
            if cursor.description is None:
                return cursor.rowcount
            return sum(batch.num_rows for batch in cursor.batches())

    def executemany(self, sql: str, rows: Any) -> int:
        """Runs a statement for each row of parameters, and returns how many rows all of them wrote."""
        with self.cursor() as cursor:
            cursor.executemany(sql, rows)
            return cursor.rowcount

    # --- Tables -------------------------------------------------------------------------------------------------------

    def ingest(self, table: str | Sequence[str], data: Any, mode: str = "create", *, schema: str | None = None) -> int:
        """Stores rows in a table, all of them or none, in one version of it. Returns their number.

        `data`: an Arrow table, batch or reader (which is streamed), a Polars or pandas data frame, a list of dicts, or a
        dict of columns; NumPy arrays of shape (n, d) become VECTOR(d) columns. `mode`: `create` a table that is not there
        yet, `append` to one that is, `replace` it, or `create_append`. `schema`: the schema of the table, `lab` for
        `lab.docs`.

        Raises:
            Error: the table exists (create), or does not (append), or has other columns.
        """
        if mode not in _INGEST_MODES:
            raise ValueError(f"mode is one of {', '.join(_INGEST_MODES)}, not {mode!r}")
        owner, name = _sql.name_parts(table, schema)
        owner = owner if owner is not None else self._schema
        reader = _ingest.reader_of(data)
        with self.cursor() as cursor, _telling_of_keys(mode == "append"):
            written = cursor.adbc_ingest(name, reader, mode, db_schema_name=owner)
        self._has_changed = True
        return written

    def search(
        self,
        table: str | Sequence[str],
        column: str,
        vector: Any,
        k: int = 10,
        columns: Sequence[str] | None = None,
        filter: str | Mapping[str, Any] | None = None,
        metric: str | None = None,
        *,
        schema: str | None = None,
    ) -> pa.Table:
        """The k rows whose vectors are nearest to `vector`, nearest first, with `_distance` as the last column.

        `column`: the column of vectors. `columns`: the columns to return, all if not given. `filter`: chooses the
        candidates, so that the answer is the k nearest of the rows that match. It is a SQL condition, which must not
        be put together from foreign text; a dict of columns and values is safe for any values: `{"tenant": 7, "lang":
        ["de", "en"], "deleted": None}` means equal, one of, is null, all of them. `metric`: `cosine` (also if not given),
        `l2`, `inner_product`, `l1`; `hamming` and `jaccard` for bit vectors. Smaller is closer in all of them.
        """
        sql = search_sql(self._qualified_parts(table, schema), column, k, columns, filter, metric)
        return self.query(sql, [vector])

    def tables(self, schema: str | None = None) -> list[_sql.Relation]:
        """The tables and views, of one schema or of all but the system's own, in order of name."""
        sql = "SELECT table_schema, table_name, table_type FROM information_schema.tables WHERE table_type <> 'SYSTEM VIEW'"
        if schema is not None:
            sql += f" AND table_schema = {_sql.text(schema)}"
        rows = self.query(sql + " ORDER BY table_schema, table_name").to_pylist()
        return [_sql.Relation(row["table_schema"], row["table_name"], row["table_type"]) for row in rows]

    def schema(self, table: str | Sequence[str], *, schema: str | None = None) -> pa.Schema:
        """The columns of a table or view, as Arrow types."""
        return self.query(f"SELECT * FROM {self._qualified(table, schema)} LIMIT 0").schema

    def _qualified(self, table: str | Sequence[str], schema: str | None = None) -> str:
        return _sql.qualified(self._qualified_parts(table, schema))

    def _qualified_parts(self, table: str | Sequence[str], schema: str | None) -> tuple[str, ...]:
        owner, name = _sql.name_parts(table, schema)
        owner = owner if owner is not None else self._schema
        return (owner, name) if owner is not None else (name,)

    @property
    def _schema(self) -> str | None:
        return self._target.schema if self._target is not None else None

    # --- The session --------------------------------------------------------------------------------------------------

    def set(self, **settings: Any) -> None:
        """Sets settings of this session, such as `exact=True`, `statement_timeout="30s"`; None resets one.

        Raises:
            Error: there is no such setting, or it does not take this value; those before it are set.
        """
        for name, value in settings.items():
            self.execute(f"RESET {_setting(name)}" if value is None else f"SET {_setting(name)} = {_sql.text(_text(value))}")

    def cancel(self) -> None:
        """Cancels every statement that runs on this connection. Call it from another thread."""
        for cursor in list(self._cursors):
            with contextlib.suppress(adbc.Error):
                cursor.adbc_cancel()
        with contextlib.suppress(adbc.Error):
            self.adbc_cancel()

    def adbc_clone(self) -> NoReturn:
        """Not supported: a clone would be another session, with other settings."""
        raise adbc.NotSupportedError("a clone would not have the settings of this session; call sagitta.connect again")


def search_sql(
    table: Sequence[str],
    column: str,
    k: int = 10,
    columns: Sequence[str] | None = None,
    filter: str | Mapping[str, Any] | None = None,
    metric: str | None = None,
) -> str:
    """The statement that `Connection.search` runs; `$1` is the vector."""
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise ValueError(f"k is a whole number above 0, not {k!r}")
    if columns is not None:
        columns = [*[name for name in columns if name != "_distance"], "_distance"]
    arguments = [_sql.text(_sql.qualified(table)), _sql.text(_checked_name(column)), "$1", f"k => {int(k)}"]
    if filter is not None:
        condition = filter if isinstance(filter, str) else condition_of(filter)
        arguments.append(f"filter => {_sql.text(condition)}")
    if metric is not None:
        arguments.append(f"metric => {_sql.text(metric)}")
    return f"SELECT {_sql.columns(columns)} FROM vector_search({', '.join(arguments)})"


def condition_of(values: Mapping[str, Any]) -> str:
    """Columns and their values as a SQL condition: equal, one of a list, is null; all of them."""
    conditions = []
    for name, value in values.items():
        quoted = _sql.identifier(name)
        if value is None:
            conditions.append(f"{quoted} IS NULL")
        elif isinstance(value, list | tuple | set | frozenset):
            listed = [_sql.literal(item) for item in value if item is not None]
            one_of = [f"{quoted} IN ({', '.join(listed)})"] if listed else []
            if None in value:
                one_of.append(f"{quoted} IS NULL")
            conditions.append(f"({' OR '.join(one_of)})" if one_of else "FALSE")
        else:
            conditions.append(f"{quoted} = {_sql.literal(value)}")
    return " AND ".join(conditions) or "TRUE"


def _checked_name(name: str) -> str:
    _sql.identifier(name)
    return name


def _setting(name: str) -> str:
    if not name.isidentifier() or not name.isascii():
        raise ValueError(f"{name!r} is no name of a setting; SELECT name FROM system.settings lists them")
    return name


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else str(value)
