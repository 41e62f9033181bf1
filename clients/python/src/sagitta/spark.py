"""Tables of Sagitta as Spark data frames, read in parallel, and data frames appended to tables in one commit.

    import sagitta.spark
    sagitta.spark.register(spark)
    docs = spark.read.format("sagitta").option("uri", "grpc://127.0.0.1:32100").option("table", "docs").load()
    new.write.format("sagitta").option("uri", "grpc://127.0.0.1:32100").option("table", "docs").mode("append").save()

The package must be installed where the executors run.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql import datasource
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition, WriterCommitMessage
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import StructType

from . import _flight, _sql
from . import _predicate as predicates
from ._connection import Connection, Login, TlsOptions, connect
from ._uri import DEFAULT_URI, parse_uri

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["SagittaDataSource", "register"]

PARTITIONS_MAX = 256
"""Into how many parts a server splits an answer at most; how many there are, it says."""

_STAGE = "_spark_"
_KEPT_SECONDS = 60
_OPTIONS = {
    "uri": "the address of the server",
    "user": "who asks",
    "password": "their password",
    "token": "a bearer token, in place of both",
    "table": "the table to read or to append to: docs, lab.docs",
    "path": "the same, as in load('docs')",
    "query": "a SELECT to read, in place of a table",
    "where": "a SQL condition that the server applies",
    "pushdown": "once pushes Spark's filters to the server, for data frames that are used in one query each",
    "columns": 'the columns to read, as in id,"a name, with a comma"',
    "partitions": f"into how many parts the answer may be split, {PARTITIONS_MAX} if not given",
    "tls_root_certs": "a file of the authorities that are trusted",
    "tls_client_cert": "a file of the certificate of this client",
    "tls_client_key": "a file of its key",
    "tls_server_name": "the name that the certificate must hold",
    "tls_skip_verify": "true trusts any certificate",
}


def register(spark: SparkSession) -> None:
    """Makes `format("sagitta")` known to a session."""
    spark.dataSource.register(SagittaDataSource)


class SagittaDataSource(DataSource):
    """The format `sagitta`. Options: uri, user, password, token, table or query, columns, partitions, tls_…"""

    @classmethod
    def name(cls) -> str:
        """What `format()` takes."""
        return "sagitta"

    def __init__(self, options: Mapping[str, str]):
        super().__init__(options)  # type: ignore[arg-type]
        self._request = Request.of(options)

    def schema(self) -> StructType:
        """The columns of the table or query, in Spark's types."""
        request = self._request
        with request.connected() as connection:
            schema = connection.query(f"{request.select()} LIMIT 0").schema
        return from_arrow_schema(spark_schema(schema))

    def reader(self, schema: StructType) -> SagittaReader:
        """Reads what `schema` names."""
        return (PushingReader if self._request.pushdown else SagittaReader)(self._request, schema)

    def writer(self, schema: StructType, overwrite: bool) -> SagittaWriter:  # type: ignore[override]
        """Appends to the table."""
        if overwrite:
            raise ValueError("Sagitta tables are appended to: write mode('append'), after TRUNCATE if rows must go first")
        return SagittaWriter(self._request, schema)


@dataclasses.dataclass(frozen=True)
class Request:
    """The options, understood."""

    access: _flight.Access
    source: str
    table: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    where: str | None
    pushdown: bool
    partitions: int

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Request:
        """Reads the options of Spark, which know no case.

        Raises:
            ValueError: one is missing, unknown, or says nothing.
        """
        given = {name.lower(): value for name, value in dict(options).items()}
        unknown = sorted(given.keys() - _OPTIONS.keys())
        if unknown:
            known = "; ".join(f"{name}: {meaning}" for name, meaning in _OPTIONS.items())
            raise ValueError(f"there is no option {unknown[0]}. There are {known}")
        target = parse_uri(given.get("uri", DEFAULT_URI))
        login = Login.of(target, given.get("user"), given.get("password"), given.get("token"))
        tls = TlsOptions(
            given.get("tls_root_certs"),
            given.get("tls_client_cert"),
            given.get("tls_client_key"),
            given.get("tls_server_name"),
            given.get("tls_skip_verify", "false").lower() == "true",
        )
        tls.check(target)
        source, table = _source(given, target.schema)
        columns = tuple(_listed(given["columns"])) if "columns" in given else None
        if given.get("pushdown", "off") not in ("off", "once"):
            raise ValueError(f"pushdown is off or once, not {given['pushdown']!r}; the README says what once means")
        pushdown = given.get("pushdown") == "once"
        access = _flight.Access(target, login, tls)
        return cls(access, source, table, columns, given.get("where"), pushdown, _partitions(given))

    def connected(self) -> Connection:
        """A connection for statements."""
        login, tls = self.access.login, self.access.tls
        return connect(
            _address(self.access),
            login.user,
            login.password,
            login.token,
            tls_root_certs=tls.root_certs,
            tls_client_cert=tls.client_cert,
            tls_client_key=tls.client_key,
            tls_server_name=tls.server_name,
            tls_skip_verify=tls.skip_verify,
        )

    def select(self, columns: Sequence[str] | None = None, condition: str | None = None) -> str:
        """The statement that is read."""
        sql = f"SELECT {_sql.columns(columns if columns is not None else self.columns)} FROM {self.source}"
        # A line of its own ends a comment that a condition of the user may end with.
        conditions = [f"({given}\n)" for given in (self.where, condition) if given is not None]
        return sql + (" WHERE " + " AND ".join(conditions) if conditions else "")


def _address(access: _flight.Access) -> str:
    schema = access.target.schema
    return access.target.location + (f"/{schema}" if schema is not None else "")


def _source(given: Mapping[str, str], schema: str | None) -> tuple[str, tuple[str, ...] | None]:
    named = [name for name in ("table", "path", "query") if name in given]
    if len(named) != 1:
        raise ValueError("what is read is named by one of the options table and query; " + f"given are {named or 'none'}")
    if named == ["query"]:
        return f"({given['query'].strip().rstrip(';')}\n) AS q", None
    owner, name = _sql.name_parts(given[named[0]])
    owner = owner if owner is not None else schema
    parts = (owner, name) if owner is not None else (name,)
    return _sql.qualified(parts), parts


def _partitions(given: Mapping[str, str]) -> int:
    text = given.get("partitions", str(PARTITIONS_MAX))
    if not text.isdecimal() or not 1 <= int(text) <= PARTITIONS_MAX:
        raise ValueError(f"partitions is a whole number from 1 to {PARTITIONS_MAX}, not {text!r}")
    return int(text)


def _listed(text: str) -> Iterator[str]:
    """Names between commas; a name in double quotes may hold commas."""
    position = 0
    while True:
        while position < len(text) and text[position] == " ":
            position += 1
        if text[position : position + 1] == '"':
            name, position = _quoted(text, position + 1)
        else:
            end = text.find(",", position)
            end = len(text) if end < 0 else end
            name, position = text[position:end].strip(), end
        if not name:
            raise ValueError(f'columns {text!r} has an empty name; write id,title or "a name, with a comma"')
        yield name
        rest = text[position:].lstrip(" ")
        if not rest:
            return
        if rest[0] != ",":
            raise ValueError(f"columns {text!r} has {rest!r} behind a name in quotes; a comma goes between names")
        position = len(text) - len(rest) + 1


def _quoted(text: str, position: int) -> tuple[str, int]:
    name = ""
    while True:
        end = text.find('"', position)
        if end < 0:
            raise ValueError(f"columns {text!r} has a name without its closing quote")
        name += text[position:end]
        if text[end + 1 : end + 2] != '"':
            return name, end + 1
        name, position = name + '"', end + 2


# --- Types ------------------------------------------------------------------------------------------------------------


def spark_schema(schema: pa.Schema) -> pa.Schema:
    """The columns in the types that Spark has. Unsigned integers become the next wider signed ones, halves become floats,
    vectors become lists, nanoseconds become microseconds.

    Raises:
        TypeError: Spark has no type for a column.
    """
    return pa.schema([pa.field(field.name, _spark_type(field.type, field.name), field.nullable) for field in schema])


_WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0)}
_SAME = (
    pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.binary(),
    pa.date32(), pa.null(),
)  # fmt: skip


def _spark_type(kind: pa.DataType, name: str) -> pa.DataType:
    is_a = pa.types
    if kind in _SAME:
        return kind
    if kind in _WIDER:
        return _WIDER[kind]
    if is_a.is_float16(kind):
        return pa.float32()
    if is_a.is_large_string(kind) or is_a.is_string_view(kind):
        return pa.string()
    if is_a.is_large_binary(kind) or is_a.is_binary_view(kind) or is_a.is_fixed_size_binary(kind):
        return pa.binary()
    if is_a.is_date64(kind):
        return pa.date32()
    if is_a.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz is not None else None)
    if is_a.is_duration(kind):
        return pa.duration("us")
    if is_a.is_decimal(kind) and kind.precision <= 38:
        return pa.decimal128(kind.precision, kind.scale)
    if is_a.is_dictionary(kind):
        return _spark_type(kind.value_type, name)
    if isinstance(kind, pa.BaseExtensionType):
        return _spark_type(kind.storage_type, name)
    if is_a.is_fixed_size_list(kind) or is_a.is_list(kind) or is_a.is_large_list(kind):
        return pa.list_(pa.field("element", _spark_type(kind.value_type, name), kind.value_field.nullable))
    if is_a.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([pa.field(f.name, _spark_type(f.type, name), f.nullable) for f in fields])
    raise TypeError(
        f"Spark has no type for the column {name}, which is {kind}; leave it out with the option columns, or cast it to "
        "TEXT in the option query"
    )


def _in_spark_types(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [_cast(batch.column(field.name), field.type) for field in schema]
    return pa.record_batch(columns, schema=schema)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind and array.type.equals(kind):
        return array
    if isinstance(array, pa.ExtensionArray):
        return _cast(array.storage, kind)
    if isinstance(array, pa.DictionaryArray):
        return _cast(array.dictionary, kind).take(array.indices)
    # The one loss that is meant: Spark counts microseconds.
    return array.cast(kind, safe=not (pa.types.is_timestamp(kind) or pa.types.is_duration(kind)))


# --- Reading ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Part(InputPartition):
    """One part of an answer: everything that an executor needs to fetch it, twice if a task is tried again."""

    endpoint: bytes
    headers: list[tuple[bytes, bytes]] = dataclasses.field(repr=False)
    planned_at: float


class SagittaReader(DataSourceReader):
    """Has the server split the answer on the driver, fetches the parts on the executors.

    Spark plans a data frame once, at its first action, and fetches the same parts in every action after that: all of
    them see the same version of the data.
    """

    def __init__(self, request: Request, schema: StructType):
        self._request = request
        self._names = schema.fieldNames()
        self._schema = to_arrow_schema(schema, timezone="UTC")
        self._condition: str | None = None

    def partitions(self) -> Sequence[InputPartition]:
        """The parts of the answer."""
        sql = self._request.select(self._names, self._condition)
        parts = _flight.plan(self._request.access, sql, self._request.partitions)
        return [Part(endpoint, parts.headers, time.time()) for endpoint in parts.endpoints]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Fetches one part."""
        if not isinstance(partition, Part):  # An answer without endpoints is empty; Spark asks for a part all the same.
            return
        try:
            for batch in _flight.fetch(self._request.access, partition.endpoint, partition.headers):
                yield _in_spark_types(batch, self._schema)
        except (pa.ArrowException, KeyError) as error:
            age = time.time() - partition.planned_at
            if age < _KEPT_SECONDS:
                raise
            raise RuntimeError(
                f"a part of the answer cannot be fetched {age:.0f} s after the data frame was first used: {error}. The "
                "server keeps an answer for a while only; load the data frame again, or cache() it at its first use"
            ) from error


class PushingReader(SagittaReader):
    """Also hands Spark's filters to the server, to fetch fewer rows; Spark applies every filter once more.

    It is not the default, because Spark (4.3) keeps what was planned for the first filter of a data frame and reads that
    again in its next query without filter: the rows that the filter left out are missing then.
    """

    def pushFilters(self, filters: list[Any]) -> Iterable[Any]:
        """Takes over what the server can apply. Needs `spark.sql.python.filterPushdown.enabled`."""
        with self._request.connected() as connection:
            fields = connection.query(f"{self._request.select()} LIMIT 0").schema
        pushed = predicates.all_of([translate(condition, fields) for condition in filters])
        self._condition = pushed.sql if pushed is not None else None
        return filters


_COMPARISONS = {
    "EqualTo": "=", "GreaterThan": ">", "GreaterThanOrEqual": ">=", "LessThan": "<", "LessThanOrEqual": "<=",
}  # fmt: skip


def translate(condition: Any, fields: pa.Schema) -> predicates.Pushed | None:
    """A filter of Spark as SQL; None if it is not pushed."""
    kind = type(condition).__name__
    if kind == "Not":
        return predicates.negated(translate(condition.child, fields))
    path = getattr(condition, "attribute", ())
    if len(path) != 1 or path[0] not in fields.names:
        return None
    field = fields.field(path[0])
    if kind == "IsNull":
        return predicates.is_null(field)
    if kind == "IsNotNull":
        return predicates.is_not_null(field)
    if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
        return None  # Spark compares the microseconds alone.
    if kind in _COMPARISONS:
        return predicates.compare(field, _COMPARISONS[kind], condition.value)
    if kind == "EqualNullSafe":
        return _equal_null_safe(field, condition.value)
    if kind == "In":
        present = [value for value in condition.value if value is not None]
        pushed = predicates.is_in(field, present)
        return pushed if pushed is None or len(present) == len(condition.value) else predicates.Pushed(pushed.sql, False)
    if kind == "StringStartsWith":
        return predicates.starts_with(field, condition.value)
    return None


def _equal_null_safe(field: pa.Field, value: Any) -> predicates.Pushed | None:
    if value is None:
        return predicates.is_null(field)
    pushed = predicates.compare(field, "=", value)
    return None if pushed is None else predicates.Pushed(pushed.sql, False)


# --- Writing ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Staged(WriterCommitMessage):
    """What one task wrote: a table of its own, none if it had no rows."""

    table: tuple[str, ...] | None
    rows: int


class SagittaWriter(getattr(datasource, "DataSourceArrowWriter")):  # noqa: B009 - Not in the stubs of all versions.
    """Appends a data frame to a table in one commit.

    Each task stores its rows in a table of its own, `_spark_…` beside the target. When all tasks are done, the driver moves
    them with one INSERT, which is one version of the target, and drops these tables. A task that is tried again, or twice at
    once, leaves a table that nobody reads. If the driver dies before, the target is unchanged and the tables stay.
    """

    def __init__(self, request: Request, schema: StructType):
        if request.table is None:
            raise ValueError("a query cannot be written to; name the table with the option table")
        if request.columns is not None:
            raise ValueError("the option columns is for reading; select the columns of the data frame")
        self._request, self._table = request, request.table
        self._stage = f"{_STAGE}{datetime.datetime.now(datetime.timezone.utc):%Y%m%d}_{uuid.uuid4().hex}"
        with request.connected() as connection:
            self._schema = _target_schema(schema.fieldNames(), connection.schema(self._table), request.source)
            _check_required(connection, self._table, self._schema.names)

    def write(self, iterator: Iterator[pa.RecordBatch]) -> Staged:
        """On an executor: the rows of one task into a table of their own."""
        batches = (_in_target_types(batch, self._schema) for batch in iterator)
        first = next((batch for batch in batches if batch.num_rows), None)
        if first is None:
            return Staged(None, 0)
        table = (*self._table[:-1], f"{self._stage}_{uuid.uuid4().hex}")

        def all_batches() -> Iterator[pa.RecordBatch]:
            yield first
            yield from batches

        with self._request.connected() as connection:
            rows = connection.ingest(table, pa.RecordBatchReader.from_batches(self._schema, all_batches()), "create")
        return Staged(table, rows)

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, when all tasks are done: all their rows into the target, at once."""
        staged = [message.table for message in messages if isinstance(message, Staged) and message.table is not None]
        listed = _sql.columns(self._schema.names)
        parts = " UNION ALL ".join(f"SELECT {listed} FROM {_sql.qualified(table)}" for table in staged)
        with self._request.connected() as connection:
            try:
                if staged:
                    connection.execute(f"INSERT INTO {self._request.source} ({listed}) {parts}")
            finally:
                self._clean(connection)

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, when a task failed for good: the target stays as it is."""
        with self._request.connected() as connection:
            self._clean(connection)

    def _clean(self, connection: Connection) -> None:
        """Drops the tables of this write, those of lost tasks too."""
        owner = self._table[0] if len(self._table) == 2 else "public"
        for relation in connection.tables(owner):
            if relation.name.startswith(self._stage):
                connection.execute(f"DROP TABLE IF EXISTS {_sql.qualified(relation)}")


def _target_schema(names: Sequence[str], target: pa.Schema, table: str) -> pa.Schema:
    for name in names:
        if name not in target.names:
            raise ValueError(f"the data frame has a column {name}, {table} does not; it has {', '.join(target.names)}")
    return pa.schema([target.field(name).with_nullable(True) for name in names])


def _check_required(connection: Connection, table: Sequence[str], names: Sequence[str]) -> None:
    owner, name = table if len(table) == 2 else ("public", table[0])
    required = connection.query(
        "SELECT column_name FROM information_schema.columns WHERE is_nullable = 'NO' AND column_default IS NULL "
        f"AND table_schema = {_sql.text(owner)} AND table_name = {_sql.text(name)} ORDER BY ordinal_position"
    )
    missing = [column for column in required.column(0).to_pylist() if column not in names]
    if missing:
        raise ValueError(f"{name} needs a value for {missing[0]}, which the data frame does not have; add the column")


def _in_target_types(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows in the types of the table; a value that does not fit is an error."""
    columns = []
    for number, field in enumerate(schema):
        try:
            columns.append(batch.column(number).cast(field.type))
        except pa.ArrowException as error:
            raise ValueError(
                f"column {field.name} is {batch.column(number).type} in the data frame and {field.type} in the table, and "
                f"a value does not fit: {error}"
            ) from error
    return pa.record_batch(columns, schema=schema)
