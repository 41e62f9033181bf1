"""What a table with columns of vectors holds, and what its searches must answer: a model in NumPy, for property tests.

Every value is one that its column's type holds exactly, so that rows come back as they were and distances agree.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa

OPERATORS = {"l2": "<->", "cosine": "<=>", "inner_product": "<#>", "hamming": "<~>", "jaccard": "<%>"}
CLASSES = {
    "l2": "vector_l2_ops",
    "cosine": "vector_cosine_ops",
    "inner_product": "vector_ip_ops",
    "hamming": "bit_hamming_ops",
    "jaccard": "bit_jaccard_ops",
}
FLOATS = ("l2", "cosine", "inner_product")
# Distances are sums in double precision on both sides: they differ in the last bits.
TOLERANCE = 1e-9
WORDS = ["red", "rose", "green", "blue", "black"]
CLUSTERS = 60


@dataclasses.dataclass(frozen=True)
class Element:
    """What one dimension of a vector is."""

    name: str
    sql: str
    kind: type
    arrow: pa.DataType
    metrics: tuple[str, ...]

    @property
    def is_bit(self) -> bool:
        return self.name == "bit"


ELEMENTS = {
    element.name: element
    for element in (
        Element("float32", "VECTOR({dim})", np.float32, pa.float32(), FLOATS),
        Element("float16", "VECTOR({dim}, FLOAT16)", np.float16, pa.float16(), FLOATS),
        Element("int8", "VECTOR({dim}, INT8)", np.int8, pa.int8(), FLOATS),
        Element("uint8", "VECTOR({dim}, UINT8)", np.uint8, pa.uint8(), FLOATS),
        Element("bit", "BITVECTOR({dim})", np.uint8, pa.uint8(), ("hamming", "jaccard")),
    )
}


@dataclasses.dataclass(frozen=True)
class Column:
    """Values, and which rows have one; those without hold zeros. `origin`: its first name, whatever it is called now."""

    kind: str
    values: np.ndarray
    has: np.ndarray
    origin: str = ""

    @staticmethod
    def full(kind: str, values: np.ndarray, origin: str = "") -> "Column":
        return Column(kind, values, np.ones(len(values), bool), origin)

    def taken(self, rows: np.ndarray) -> "Column":
        return dataclasses.replace(self, values=self.values[rows], has=self.has[rows])

    def replaced(self, rows: np.ndarray, values, has=True) -> "Column":
        """With other values in some rows; they lose them where `has` is false."""
        all_values, all_has = self.values.copy(), self.has.copy()
        all_values[rows], all_has[rows] = values, has
        all_values[~all_has] = zero_of(self.kind)
        return dataclasses.replace(self, values=all_values, has=all_has)

    def followed_by(self, other: "Column") -> "Column":
        both = [np.concatenate(pair) for pair in ((self.values, other.values), (self.has, other.has))]
        return dataclasses.replace(self, values=both[0], has=both[1])


def zero_of(kind: str):
    return "" if kind == "TEXT" else 0


def is_vector(kind: str) -> bool:
    return "VECTOR" in kind


@dataclasses.dataclass(frozen=True)
class State:
    """The rows of a table at one version. `id` is the key."""

    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> np.ndarray:
        return self.columns["id"].values

    def vector_columns(self) -> list[str]:
        return [name for name, column in self.columns.items() if is_vector(column.kind)]

    def taken(self, rows: np.ndarray) -> "State":
        return State({name: column.taken(rows) for name, column in self.columns.items()})

    def having(self, **columns: Column) -> "State":
        return State({**self.columns, **columns})

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Where these ids are; -1 for those that are not there."""
        order = np.argsort(self.ids, kind="stable")
        at = np.searchsorted(self.ids, ids, sorter=order)
        at = order[np.minimum(at, len(order) - 1)] if len(order) else np.full(len(ids), -1)
        return np.where(self.ids[at] == ids, at, -1) if len(order) else at

    def followed_by(self, others: "State") -> "State":
        """With these rows too, which have the same columns."""
        return State({name: column.followed_by(others.columns[name]) for name, column in self.columns.items()})

    def changed(self, others: "State", names: list[str]) -> "State":
        """With the values that other rows of the same ids have in these columns; ids that are not here are passed over."""
        at = self.rows_of(others.ids)
        known, at = others.taken(at >= 0), at[at >= 0]
        return self.having(
            **{name: self.columns[name].replaced(at, known.columns[name].values, known.columns[name].has) for name in names}
        )

    def with_default(self, name: str, value: int | None) -> "State":
        """With one more column of numbers that has one value in all rows, or none."""
        values = np.full(len(self), 0 if value is None else value, np.int64)
        return self.having(**{name: Column("BIGINT", values, np.full(len(self), value is not None))})

    def without(self, name: str) -> "State":
        return State({other: column for other, column in self.columns.items() if other != name})

    def renamed(self, old: str, new: str) -> "State":
        return State({new if name == old else name: column for name, column in self.columns.items()})


@dataclasses.dataclass
class Cloud:
    """Where vectors come from: clusters, and one direction along which rows are told apart by a number."""

    element: Element
    dim: int
    seed: int

    def __post_init__(self):
        fixed = np.random.default_rng(self.seed)
        self.centers = fixed.normal(size=(CLUSTERS, self.dim))
        direction = fixed.normal(size=self.dim)
        self.direction = direction / np.linalg.norm(direction)
        # From narrow clusters to what is nearly one cloud, in which all rows are about as far apart.
        self.spread = fixed.choice([0.2, 0.5, 1.5])
        self.random = np.random.default_rng(self.seed + 1)

    def points(self, count: int) -> np.ndarray:
        clusters = self.random.integers(0, CLUSTERS, count)
        return self.centers[clusters] + self.spread * self.random.normal(size=(count, self.dim))

    def sides(self, points: np.ndarray) -> np.ndarray:
        """How far along the direction, a whole number."""
        return np.round(points @ self.direction * 1000).astype(np.int64)

    def encoded(self, points: np.ndarray) -> np.ndarray:
        """As the element holds it; bits one by one."""
        if self.element.is_bit:
            return (points > 0).astype(np.uint8)
        if self.element.kind is np.int8:
            return np.clip(np.round(points * 25), -128, 127).astype(np.int8)
        if self.element.kind is np.uint8:
            return np.clip(np.round(points * 25 + 128), 0, 255).astype(np.uint8)
        return points.astype(self.element.kind)

    def vectors(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors, some of them equal, some zero, some far out, and some missing."""
        values, count = self.encoded(points), len(points)
        twins = self.random.random(count) < 0.02
        values[twins] = values[self.random.integers(0, count, twins.sum())]
        values[self.random.random(count) < 0.003] = 0
        if not self.element.is_bit and self.element.kind not in (np.int8, np.uint8):
            far = self.random.random(count) < 0.002
            values[far] *= self.element.kind(50)
        has = self.random.random(count) >= 0.01
        values[~has] = 0
        return values, has


def literal(element: Element, vector: np.ndarray) -> str:
    """A vector as SQL text, all digits that it has."""
    if element.is_bit:
        return "".join(str(bit) for bit in vector)
    if element.kind in (np.int8, np.uint8):
        return "[" + ",".join(str(value) for value in vector) + "]"
    return "[" + ",".join(repr(float(value)) for value in vector) + "]"


def distances(metric: str, column: Column, query: np.ndarray) -> np.ndarray:
    """The distance of every row in double precision; NaN where there is none."""
    rows, query = column.values.astype(np.float64), query.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "l2":
            found = np.sqrt(((rows - query) ** 2).sum(1))
        elif metric == "cosine":
            found = 1 - (rows @ query) / np.sqrt((rows**2).sum(1) * (query**2).sum())
        elif metric == "inner_product":
            found = -(rows @ query)
        elif metric == "hamming":
            found = (rows != query).sum(1).astype(np.float64)
        else:
            common = rows @ query
            found = np.where(common == 0, 1, 1 - common / np.maximum(rows.sum(1) + query.sum() - common, 1))
    return np.where(column.has, found, np.nan)


def to_arrow(column: Column, element: Element) -> pa.Array:
    missing = ~column.has
    if not is_vector(column.kind):
        arrow = {"BIGINT": pa.int64(), "INT": pa.int32(), "TEXT": pa.string()}[column.kind.split()[0]]
        return pa.array(column.values.tolist(), arrow, mask=missing)
    values = np.packbits(column.values, axis=1) if element.is_bit else column.values
    flat = pa.array(values.reshape(-1), element.arrow)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(missing))


def arrow_table(state: State, element: Element, schema: pa.Schema | None = None) -> pa.Table:
    """The rows as Arrow, in the columns of a schema if there is one."""
    names = state.columns if schema is None else schema.names
    arrays = [to_arrow(state.columns[name], element) for name in names]
    if schema is not None:
        return pa.Table.from_arrays(arrays, schema=schema)
    marked = {b"sagitta:type": b"bit"}
    fields = [
        pa.field(name, array.type, metadata=marked if element.is_bit and is_vector(state.columns[name].kind) else None)
        for name, array in zip(names, arrays)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def of_arrow(table: pa.Table, like: State, element: Element) -> State:
    """Rows as they came back, whose columns are those of another state."""
    assert table.column_names == list(like.columns), f"columns {table.column_names}, expected {list(like.columns)}"
    columns = {}
    for name, expected in like.columns.items():
        array = table[name].combine_chunks()
        has = np.array(array.is_valid())
        if not is_vector(expected.kind):
            values = np.array(array.fill_null(zero_of(expected.kind)).to_pylist(), expected.values.dtype)
        else:
            width = array.type.list_size
            flat = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            values = np.zeros((len(array), expected.values.shape[1]), expected.values.dtype)
            values[has] = np.unpackbits(flat.astype(np.uint8), axis=1) if element.is_bit else flat
        columns[name] = Column(expected.kind, values, has)
    return State(columns)


def difference(expected: State, found: State) -> str | None:
    """The first thing in which two states differ, in words; the order of rows is none."""
    if len(np.unique(found.ids)) != len(found):
        return f"{len(found) - len(np.unique(found.ids))} ids are there twice"
    lost, extra = np.setdiff1d(expected.ids, found.ids), np.setdiff1d(found.ids, expected.ids)
    if len(lost) or len(extra):
        return f"{len(lost)} rows are missing {lost[:5].tolist()}, {len(extra)} are too many {extra[:5].tolist()}"
    found = found.taken(found.rows_of(expected.ids))
    for name, one in expected.columns.items():
        two = found.columns[name]
        equal = one.values == two.values
        same = (one.has == two.has) & (equal.all(1) if equal.ndim > 1 else equal)
        if not same.all():
            at = np.flatnonzero(~same)
            values = f"{one.values[at[0]]} ({one.has[at[0]]}), found {two.values[at[0]]} ({two.has[at[0]]})"
            return f"{name} differs in {len(at)} rows, in id {expected.ids[at[0]]}: {values}"
    return None


@dataclasses.dataclass(frozen=True)
class Predicate:
    """A condition as SQL, and the rows for which it is true."""

    name: str
    sql: str
    keeps: Callable[[State], np.ndarray]


def everything() -> Predicate:
    return Predicate("none", "", lambda state: np.ones(len(state), bool))


def check_answer(state: State, keeps: np.ndarray, exact: np.ndarray, k: int, answer: pa.Table) -> float:
    """Holds an answer (`id`, `d`) against the model; the share of the k nearest that it has, ties as good as each other.

    It must be as long as it can be, ascending, without a row that is dead or does not match, its distances the true ones.
    """
    ids, found = answer["id"].to_numpy(), answer["d"].to_numpy()
    candidates = keeps & ~np.isnan(exact)
    length = min(k, int(candidates.sum()))
    assert len(ids) == length, f"{len(ids)} rows, expected {length} of {int(candidates.sum())} that match"
    assert len(np.unique(ids)) == len(ids), f"rows come twice: {sorted(ids)}"
    if length == 0:
        return 1.0
    at = state.rows_of(ids)
    assert (at >= 0).all(), f"rows that are not there: {ids[at < 0][:10]}"
    assert candidates[at].all(), f"rows that do not match or have no distance: {ids[~candidates[at]][:10]}"
    np.testing.assert_allclose(found, exact[at], rtol=TOLERANCE, atol=TOLERANCE, err_msg="distances of the rows found")
    assert (np.diff(found) >= 0).all(), f"out of order: {found}"
    farthest = np.partition(exact[candidates], length - 1)[length - 1]
    return float((exact[at] <= farthest + TOLERANCE * (1 + abs(farthest))).mean())
