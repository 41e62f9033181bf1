"""Pictures of what was measured, ours beside the rivals': recall and rate, filtered searches, builds and bytes, growth.

    pip install matplotlib
    python benches/plots.py [--into FOLDER] [--dataset NAME,...]

Reads `$ANNBENCH/results/*.jsonl` (benches/README.md), of each figure the newest row, and draws into `benches/`:

    NAME-1t.svg, NAME-2t.svg    libraries on one thread and two, ours also through SQL: queries per second over recall, the best kind of
                                index of each rival
    NAME-sql-1t.svg, …-2t.svg   the same through SQL, over Flight and from databases, rows fetched
    NAME-filtered.svg           queries per second by the share of rows that match
    NAME-build.svg              time of builds, bytes of a vector, at most the ten fastest rivals
    growth.svg                  the same by the number of rows, ours alone

The same rows make the same bytes.
"""

import argparse
import collections
import json
import os
import pathlib

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent / os.environ.get("ANNBENCH", "annbench")
OURS = "sagitta"
TITLES = {
    "minilm": "sentence embeddings, 100,000 × 384, cosine",
    "large": "sentence embeddings, 624,614 × 384, cosine",
    "fashion": "Fashion-MNIST, 60,000 × 784, L2",
}
# What goes through SQL or a wire, or comes from a database with the rows' columns.
END_TO_END = ("sql ", "flight ")
RECALL, RECALL_SHOWN, RIVALS_MAX = 0.95, 0.85, 10
# Colours that the colour-blind tell apart (Okabe and Ito, 2008); the first two are ours.
OUR_COLORS = ("#d55e00", "#0072b2", "#a00060", "#000000")
RIVAL_COLORS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#8c6d31", "#7f7f7f", "#6a51a3", "#31a354", "#843c39", "#3182bd")
MARKERS = "osD^vP<>X*"

plt.rcParams.update({
    "svg.hashsalt": "sagitta", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8, "figure.facecolor": "white",
})

Row = dict


def rows_of(folder: pathlib.Path) -> list[Row]:
    """The newest row of each figure; what is no row of a figure is passed over."""
    newest = {}
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key = (*(row[name] for name in ("peer", "dataset", "n", "kind", "config")), str(row.get("setting")))
            except (ValueError, KeyError) as error:
                raise SystemExit(f"{file}, line {number} is no row of results ({error}); take it out") from error
            newest[(*key, row.get("selectivity"), row.get("note"), row.get("clients"))] = row
    return sorted(newest.values(), key=lambda row: (row["peer"] != OURS, row["peer"], row["config"], str(row.get("setting"))))


def name_of(row: Row) -> str:
    config = row["config"]
    for start in END_TO_END:
        config = config.removeprefix(start) if row["peer"] != OURS else config
    config = config.removeprefix(row["peer"]).strip()
    return f"Sagitta {config}" if row["peer"] == OURS else f"{row['peer']} {config}"


def grouped(rows: list[Row], key) -> dict:
    groups = collections.defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def style(is_ours: bool, place: int) -> dict:
    if is_ours:
        return {"color": OUR_COLORS[place % len(OUR_COLORS)], "linewidth": 2.4, "markersize": 6, "zorder": 5}
    return {"color": RIVAL_COLORS[place % len(RIVAL_COLORS)], "linewidth": 1.1, "markersize": 4, "alpha": 0.9, "zorder": 3}


def marker(is_ours: bool, place: int) -> str:
    return "o" if is_ours else MARKERS[place % len(MARKERS)]


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def log_axis(axis) -> None:
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


def save(figure, file: pathlib.Path) -> None:
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": "benches/plots.py"})
    plt.close(figure)
    print(file)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Recall and rate of the settings that no other one beats in both, by recall."""
    kept, best = [], 0.0
    for recall, rate in sorted(points, reverse=True):
        if rate > best:
            kept.append((recall, rate))
            best = rate
    return kept[::-1]


def rate_at(points: list[tuple[float, float]]) -> float:
    """The best rate with enough recall; below all others if it is not reached."""
    reached = [rate for recall, rate in points if recall >= RECALL]
    return max(reached) if reached else -1.0 + max(recall for recall, _ in points)


def best_of_each(curves: dict) -> list:
    """Ours, and of each rival the kind of index that is fastest at the recall that is asked for; fastest first."""
    best = {}
    for (peer, name), points in curves.items():
        place = (peer, name) if peer == OURS else (peer, "")
        if place not in best or rate_at(points) > rate_at(best[place][1]):
            best[place] = (name, points)
    ordered = sorted(best.items(), key=lambda item: -rate_at(item[1][1]))
    rivals = [item for item in ordered if item[0][0] != OURS][:RIVALS_MAX]
    return [(peer == OURS, name, points) for (peer, _), (name, points) in ordered if peer == OURS or ((peer, ""), (name, points)) in rivals]


def draw_curves(rows: list[Row], dataset: str, threads: int, is_end_to_end: bool, file: pathlib.Path) -> None:
    rate, curves = f"qps_{threads}t", collections.defaultdict(list)
    for row in rows:
        through = row["config"].startswith(END_TO_END)
        # Beside the libraries, ours through SQL too: it is what there is to be had.
        fits = through == is_end_to_end or row["peer"] == OURS and row["config"].startswith("sql ")
        if row["kind"] != "search" or row["config"].startswith("exact") or not fits or not row.get(rate):
            continue
        curves[(row["peer"], name_of(row))].append((row["recall10"], row[rate]))
    curves = {key: frontier(points) for key, points in curves.items() if max(recall for recall, _ in points) >= RECALL_SHOWN}
    if not curves:
        return
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    places, shown = collections.Counter(), []
    for is_ours, name, points in best_of_each(curves):
        place = places[is_ours]
        places[is_ours] += 1
        points = [point for point in points if point[0] >= RECALL_SHOWN]
        shown += points
        axes.plot(*zip(*points, strict=True), marker=marker(is_ours, place), label=name, **style(is_ours, place))
    axes.set_yscale("log")
    axes.set_xlim(max(RECALL_SHOWN, min(recall for recall, _ in shown) - 0.005), 1.0015)
    log_axis(axes.yaxis)
    axes.axvline(RECALL, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    axes.set_xlabel("recall@10")
    axes.set_ylabel("queries per second")
    what = "through SQL and from databases" if is_end_to_end else "libraries"
    axes.set_title(f"{TITLES.get(dataset, dataset)}: {what}, {'one thread' if threads == 1 else f'{threads} threads'}", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="fastest at 0.95 first", alignment="left")
    save(figure, file)


def draw_filtered(rows: list[Row], dataset: str, file: pathlib.Path) -> None:
    rows = [row for row in rows if row["kind"] == "filter" and row.get("qps")]
    # Predicates that have to do with the vectors are another question.
    rows = [row for row in rows if "the queries" not in (row.get("note") or "")]

    # Ours is measured with the bitmap of the predicate known and not: one colour, two strokes.
    lines = grouped(rows, lambda row: (row["peer"] == OURS, name_of(row), row.get("bitmap", "")))
    # Of several settings, the fastest with enough recall, or else the one that finds most.
    best = lambda rows: max(rows, key=lambda row: (min(row["recall10"], RECALL), row["qps"]))
    lines = {key: [best(same) for _, same in sorted(grouped(line, lambda row: row["selectivity"]).items())] for key, line in lines.items()}
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    places, shares = {True: [], False: []}, set()
    height = lambda line: -sum(row["qps"] for row in line) / len(line)
    for (is_ours, title, bitmap), line in sorted(lines.items(), key=lambda item: (not item[0][0], height(item[1]))):
        if title not in places[is_ours]:
            places[is_ours].append(title)
        place = places[is_ours].index(title)
        look = style(is_ours, place) | ({"linestyle": "--"} if bitmap == "cold" else {})
        xs, ys = [row["selectivity"] * 100 for row in line], [row["qps"] for row in line]
        shares.update(xs)
        axes.plot(xs, ys, label=f"{title}, bitmap {bitmap}" if bitmap else title, **look)
        for row, x, y in zip(line, xs, ys, strict=True):
            face = look["color"] if row["recall10"] >= RECALL else "white"
            axes.plot([x], [y], marker=marker(is_ours, place), markerfacecolor=face, **look | {"linestyle": "none"})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(shares), [f"{share:g} %" for share in sorted(shares)])
    axes.xaxis.set_minor_locator(NullLocator())
    log_axis(axes.yaxis)
    axes.set_xlabel("rows that match")
    axes.set_ylabel("queries per second, one at a time")
    axes.set_title(f"{TITLES.get(dataset, dataset)}: filtered (hollow: recall below {RECALL})", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, file)


def draw_builds(rows: list[Row], dataset: str, file: pathlib.Path) -> None:
    rows = [row for row in rows if row["kind"] == "build" and row.get("build_s") and row["config"] != "table"]
    # An index of ours is built once for several ways to ask it.
    rows = [row for row in rows if not (row["peer"] == OURS and row["config"].startswith("flight "))]
    rows = sorted(rows, key=lambda row: row["build_s"])
    rivals = [row for row in rows if row["peer"] != OURS][:RIVALS_MAX]
    rows = [row for row in rows if row["peer"] == OURS or row in rivals][::-1]
    if not rows:
        return
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 0.9 + 0.28 * len(rows)), sharey=True)
    names, colors = [name_of(row) for row in rows], [OUR_COLORS[0] if row["peer"] == OURS else "#9ecae1" for row in rows]
    fields = {"build_s": "build, seconds", "bytes_per_vec": "bytes per vector, as each system counts"}
    for axes, (field, title) in zip(panels, fields.items(), strict=True):
        values = [row.get(field) or 0 for row in rows]
        axes.barh(range(len(rows)), values, color=colors, height=0.7)
        for place, value in enumerate(values):
            axes.text(value, place, f"  {number(value) if value else 'not told'}", va="center", fontsize=8)
        axes.set_title(title, loc="left")
        axes.set_xlim(0, 1.15 * max(values, default=1) or 1)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), names)
    figure.suptitle(TITLES.get(dataset, dataset), x=0.01, ha="left", fontsize=10)
    figure.tight_layout()
    save(figure, file)


def draw_growth(rows: list[Row], file: pathlib.Path) -> None:
    """Ours by the number of rows: those that were measured for it, whose names end with the number."""
    rows = [row for row in rows if row["peer"] == OURS and row["dataset"].endswith(f"-{row['n']}")]
    rates, builds, sizes = f"queries per second at recall {RECALL}", "build, seconds", "bytes per vector, the vector included"
    panels = {rates: [], builds: [], sizes: []}
    for row in rows:
        line = (row["config"], f"{row['dim']} dimensions")
        if row["kind"] == "search" and row["recall10"] >= RECALL and row.get("qps_1t"):
            panels[rates].append((line, row["n"], row["qps_1t"]))
        elif row["kind"] == "build":
            panels[builds].append((line, row["n"], row["build_s"]))
            panels[sizes].append((line, row["n"], row["bytes_per_vec"]))
    if not all(panels.values()):
        return
    figure, axes_of = plt.subplots(1, 3, figsize=(12, 3.4))
    lines = sorted({line for points in panels.values() for line, *_ in points})
    for axes, (title, points) in zip(axes_of, panels.items(), strict=True):
        for place, line in enumerate(lines):
            best = grouped([point for point in points if point[0] == line], lambda point: point[1])
            curve = [(count, max(value for *_, value in same)) for count, same in sorted(best.items())]
            if curve:
                axes.plot(*zip(*curve, strict=True), marker="o", label=", ".join(line), **style(True, place))
        axes.set_xscale("log")
        axes.set_xlabel("rows")
        axes.xaxis.set_minor_locator(NullLocator())
        if title == sizes:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        else:
            axes.set_yscale("log")
            log_axis(axes.yaxis)
        axes.set_title(title, loc="left")
    axes_of[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    save(figure, file)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--into", type=pathlib.Path, default=HERE, help="the folder of the pictures")
    arguments.add_argument("--dataset", default=",".join(TITLES), help="of " + ", ".join(TITLES))
    given = arguments.parse_args()
    rows = rows_of(ROOT / "results")
    if not rows:
        raise SystemExit(f"there are no results in {ROOT / 'results'}; benches/README.md says what makes them")
    given.into.mkdir(parents=True, exist_ok=True)
    for dataset in given.dataset.split(","):
        of_set = [row for row in rows if row["dataset"] == dataset and "error" not in row]
        for threads in (1, 2):
            draw_curves(of_set, dataset, threads, False, given.into / f"{dataset}-{threads}t.svg")
            draw_curves(of_set, dataset, threads, True, given.into / f"{dataset}-sql-{threads}t.svg")
        draw_filtered(of_set, dataset, given.into / f"{dataset}-filtered.svg")
        draw_builds(of_set, dataset, given.into / f"{dataset}-build.svg")
    draw_growth(rows, given.into / "growth.svg")


if __name__ == "__main__":
    main()
