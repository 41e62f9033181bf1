"""Random searches of the table under test, at all its versions: by an index and exactly, both held against the model."""

import collections
import contextlib
import dataclasses
import datetime
import re

import numpy as np
import pyarrow as pa
from property_run import Index, Run
from vector_model import OPERATORS, WORDS, Predicate, State, check_answer, distances, everything, literal

# From so many matching rows on an index is worth it.
ROWS_WORTH = 2_000
# So many lists or vertices are all.
EVERYTHING = 65_536
# Methods that find all of the nearest where everything is read: vectors as they are, and graphs, which compare all that they keep.
WHOLE_METHODS = ("graph", "hnsw", "ivf_flat", "auto")
TARGETS = ("0.8", "0.95", "0.99")


@dataclasses.dataclass(frozen=True)
class Place:
    """A version by one of its names. `argument`: as the table function takes it; `as_of`: a setting that goes before."""

    version: int
    table: str
    argument: str = ""
    as_of: str = ""


@dataclasses.dataclass(frozen=True)
class Search:
    """One search, as SQL and as the model sees it."""

    place: Place
    column: str
    metric: str
    predicate: Predicate
    query: np.ndarray
    text: str
    k: int
    settings: dict[str, str]

    @property
    def reads_all(self) -> bool:
        return self.settings.get("nprobe") == str(EVERYTHING)

    @property
    def target(self) -> float:
        return float(self.settings.get("recall_target", "0.95"))

    def sql(self, query: str = "") -> str:
        where = f"WHERE {self.predicate.sql} " if self.predicate.sql else ""
        distance = f"{self.column} {OPERATORS[self.metric]} {query or self.text}"
        return f"SELECT id, {distance} AS d FROM {self.place.table} {where}ORDER BY d LIMIT {self.k}"

    def function(self) -> str:
        """The same by the table function."""
        arguments = [f"'t', '{self.column}', {self.text}, k => {self.k}, metric => '{self.metric}'"]
        if self.predicate.sql:
            arguments.append("filter => '" + self.predicate.sql.replace("'", "''") + "'")
        arguments += [self.place.argument] if self.place.argument else []
        return f"SELECT id, _distance AS d FROM vector_search({', '.join(arguments)})"


class Searches:
    """Makes searches of a run and checks their answers."""

    def __init__(self, run: Run):
        self.run = run
        self.random = run.random
        self.prepared: tuple | None = None
        # By target: the recall of searches by an index that chose its effort itself.
        self.recalls: dict[float, list[float]] = collections.defaultdict(list)
        self.by_method: dict[str, list[float]] = collections.defaultdict(list)
        self.eligible, self.used = 0, 0

    def look(self, at_head: int, elsewhere: int) -> None:
        """Some searches of the newest version, and of others."""
        for _ in range(at_head):
            self.check(self.search(self.head()))
        for _ in range(elsewhere):
            self.check(self.search(self.place()))
        version = self.random.choice(sorted(self.run.states))
        self.run.check_rows(f"t FOR VERSION AS OF {version}", self.run.states[version])

    # Making them.

    def head(self) -> Place:
        return Place(self.run.version, "t")

    def place(self) -> Place:
        """Any version, by its number, a tag or a time."""
        draw = self.random
        version = draw.choice(sorted(self.run.states))
        # A time means a version of which all later ones are there.
        is_timed = all(later in self.run.states for later in range(version, self.run.version))
        kind = draw.choice(["number", "tag", *(["time", "setting"] if is_timed else [])])
        if kind == "tag" and self.run.tags:
            tag = draw.choice(sorted(self.run.tags))
            table = draw.choice(["t FOR VERSION AS OF '{}'", "t AT(TAG => '{}')"]).format(tag)
            return Place(self.run.tags[tag], table, f"tag => '{tag}'")
        if kind in ("time", "setting"):
            moment = self.moment(version)
            if kind == "setting":
                return Place(version, "t", as_of=f"{moment}Z")
            text = f"TIMESTAMP '{moment.replace('T', ' ')}'"
            return Place(version, f"t FOR SYSTEM_TIME AS OF {text}", f"as_of => {text}")
        table = draw.choice(["t FOR VERSION AS OF {}", "t AS OF VERSION {}", "t AT(VERSION => {})"]).format(version)
        return Place(version, table, f"version => {version}")

    def moment(self, version: int) -> str:
        """A time at which a version was the newest."""
        first = self.run.times[version]
        end = self.run.times.get(version + 1, first + datetime.timedelta(microseconds=1))
        micros = (end - first) // datetime.timedelta(microseconds=1)
        at = first + datetime.timedelta(microseconds=self.random.choice([0, self.random.randrange(micros), micros - 1]))
        return at.replace(tzinfo=None).isoformat(timespec="microseconds")

    def search(self, place: Place) -> Search:
        draw, state, run = self.random, self.run.states[place.version], self.run
        column = draw.choice(state.vector_columns())
        metric = run.metrics[0] if draw.random() < 0.8 else draw.choice(run.metrics)
        point = run.cloud.points(1)
        query, side = run.cloud.encoded(point)[0], int(run.cloud.sides(point)[0])
        text = f"'{literal(run.element, query)}'"
        if len(state) and draw.random() < 0.3:
            # As near as can be to a row, perhaps to one of many with the same vector.
            row = draw.randrange(len(state))
            query, side = state.columns[column].values[row], int(state.columns["side"].values[row])
            text = f"'{literal(run.element, query)}'"
            if place.table == "t" and not place.as_of and state.columns[column].has[row]:
                text = draw.choice([text, f"(SELECT {column} FROM t WHERE id = {state.ids[row]})"])
        k = draw.choice([1, 10, 10, 10, 100, len(state) + 7 if draw.random() < 0.3 else 10])
        effort = draw.random()
        settings = {}
        if effort < 0.3:
            settings = {"recall_target": draw.choice(TARGETS)}
        elif effort < 0.4:
            settings = {"nprobe": str(EVERYTHING), "ef_search": str(min(max(len(state), 1), EVERYTHING))}
        elif effort < 0.45:
            settings = {"nprobe": "1", "ef_search": "1"}
        return Search(place, column, metric, self.predicate(state, side), query, text, k, settings)

    def predicate(self, state: State, side: int) -> Predicate:
        """None, or one that keeps many, few, one in a hundred or no rows, with or against the query or whatever it is."""
        draw = self.random
        kinds = ["none"] * 6 + ["broad", "hundredth", "near", "near", "far", "far", "empty", "ids", "word", "not", "either", "null"]
        kind = draw.choice(kinds)
        a, sides = state.columns["a"], state.columns["side"].values
        makes = {
            "none": everything,
            "broad": lambda: Predicate(kind, "a < 90", lambda s: a.has & (a.values < 90)),
            "hundredth": lambda: Predicate(kind, f"a = {side % 100}", lambda s: a.has & (a.values == side % 100)),
            "near": lambda: self.along(kind, sides, side, is_near=True),
            "far": lambda: self.along(kind, sides, side, is_near=False),
            "empty": lambda: Predicate(kind, "a > 1000", lambda s: np.zeros(len(s), bool)),
            "ids": lambda: self.of_ids(kind, state),
            "word": lambda: self.of_words(kind),
            "not": lambda: Predicate(kind, "NOT (a < 50)", lambda s: a.has & (a.values >= 50)),
            "either": lambda: Predicate(kind, f"a < 3 OR side < {side}", lambda s: (a.has & (a.values < 3)) | self.side_below(s, side)),
            "null": lambda: Predicate(kind, "a IS NULL", lambda s: ~a.has),
        }
        return makes[kind]()

    def side_below(self, state: State, bound: int) -> np.ndarray:
        column = state.columns["side"]
        return column.has & (column.values < bound)

    def along(self, kind: str, sides: np.ndarray, side: int, is_near: bool) -> Predicate:
        """The rows at one end of the direction of the table: the query's own, or the other one."""
        share = self.random.choice([0.5, 0.1, 0.01])
        is_low = (side < np.median(sides)) == is_near if len(sides) else True
        bound = int(np.quantile(sides, share if is_low else 1 - share)) if len(sides) else 0
        if is_low:
            return Predicate(kind, f"side < {bound}", lambda s: self.side_below(s, bound))
        return Predicate(kind, f"side >= {bound}", lambda s: s.columns["side"].has & (s.columns["side"].values >= bound))

    def of_ids(self, kind: str, state: State) -> Predicate:
        """Some that are there, and some that are not, or not any more."""
        everywhere = self.run.states[self.random.choice(sorted(self.run.states))].ids.tolist()
        ids = self.random.sample(state.ids.tolist(), min(len(state), 5)) + self.random.sample(everywhere, min(len(everywhere), 5)) + [-1]
        return Predicate(kind, f"id IN ({', '.join(map(str, ids))})", lambda s: np.isin(s.ids, ids))

    def of_words(self, kind: str) -> Predicate:
        word = self.random.choice(WORDS)

        def column(state: State):
            return state.columns["word"]

        return self.random.choice(
            [
                Predicate(kind, f"word <> '{word}'", lambda s: column(s).has & (column(s).values != word)),
                Predicate(kind, "word LIKE 'r%'", lambda s: column(s).has & np.char.startswith(column(s).values, "r")),
                Predicate(kind, f"word = '{word}' AND id % 2 = 0", lambda s: column(s).has & (column(s).values == word) & (s.ids % 2 == 0)),
            ]
        )

    # Checking them.

    def check(self, search: Search) -> None:
        """Both ways against the model, and against each other."""
        state = self.run.states[search.place.version]
        exact = distances(search.metric, state.columns[search.column], search.query)
        keeps = search.predicate.keeps(state)
        with self.run.noting(f"{search.settings} {search.place} {search.sql()}"):
            with self.settings(self.run.exact, search.place.as_of, {}):
                compared = self.run.exact.table(search.sql())
            assert check_answer(state, keeps, exact, search.k, compared) == 1.0, "an exact search that does not find the nearest"
            with self.settings(self.run.indexed, search.place.as_of, search.settings):
                found = self.answer(search)
                plan = self.plan(search)
            recall = check_answer(state, keeps, exact, search.k, found)
            self.agree(compared, found)
            self.count(search, state, int((keeps & ~np.isnan(exact)).sum()), recall, plan)

    @staticmethod
    @contextlib.contextmanager
    def settings(on, as_of: str, settings: dict[str, str]):
        """Set for a while."""
        settings = {**settings, **({"as_of": as_of} if as_of else {})}
        for name, value in settings.items():
            on.table(f"SET {name} = '{value}'")
        yield
        for name in settings:
            on.table(f"RESET {name}")

    def answer(self, search: Search) -> pa.Table:
        """By one of the ways in which a search can be said."""
        on, form = self.run.indexed, self.random.choice(["sql", "sql", "function", "parameter", "template"])
        if form == "function":
            return on.table(search.function())
        if search.text.startswith("("):
            return on.table(search.sql())
        if form == "parameter":
            return on.table(search.sql("$1"), (search.text.strip("'"),))
        if form == "template" and search.place.table == "t" and not search.place.as_of and not search.predicate.sql:
            return self.template(search)
        return on.table(search.sql())

    def template(self, search: Search) -> pa.Table:
        """By a prepared statement that is kept while the table changes."""
        on = self.run.indexed
        shape = (on, search.column, search.metric, search.k)
        if self.prepared != shape:
            if self.prepared is not None and self.prepared[0] is on:
                on.table("DEALLOCATE nearest")
            on.table(f"PREPARE nearest AS {search.sql('$1')}")
            self.prepared = shape
        return on.table(f"EXECUTE nearest({search.text})")

    def plan(self, search: Search) -> str:
        return "\n".join(self.run.indexed.table(f"EXPLAIN ANALYZE {search.sql()}")["plan"].to_pylist())

    def agree(self, compared: pa.Table, found: pa.Table) -> None:
        """A row has one distance, to the last bit, however it was found."""
        one = dict(zip(compared["id"].to_pylist(), compared["d"].to_pylist()))
        two = dict(zip(found["id"].to_pylist(), found["d"].to_pylist()))
        other = {row: (one[row], two[row]) for row in one.keys() & two.keys() if one[row] != two[row]}
        assert not other, f"distances that differ between the ways: {other}"

    def serving(self, search: Search, state: State) -> list[Index]:
        """The indexes that may serve a search."""
        origin = state.columns[search.column].origin
        return [index for index in self.run.indexes.values() if (index.origin, index.metric) == (origin, search.metric)]

    def count(self, search: Search, state: State, matching: int, recall: float, plan: str) -> None:
        """What an index found is counted, and what it should have found is checked where it reads everything."""
        segments = sum(int(count) for count in re.findall(r"index_segments=(\d+)", plan))
        serving = self.serving(search, state)
        assert segments == 0 or serving, f"a segment was searched, and no index serves the search:\n{plan}"
        self.run.figures["searches"] += 1
        if serving and matching >= ROWS_WORTH and search.k <= 100:
            self.eligible += 1
            self.used += segments > 0
        if segments == 0:
            # A build may end between a search and its plan.
            assert recall == 1.0 or serving, f"nothing but comparing, and recall {recall}:\n{plan}"
            return
        methods = {index.method for index in serving}
        if search.reads_all and methods <= set(WHOLE_METHODS):
            assert recall == 1.0, f"everything is read, and recall {recall}:\n{plan}"
        if "nprobe" not in search.settings:
            self.recalls[search.target].append(recall)
            for method in methods:
                self.by_method[f"{method} {search.metric}"].append(recall)
