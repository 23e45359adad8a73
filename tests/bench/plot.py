"""The figures of one database or several as one picture. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

Run = dict[str, Any]

NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
COLOURS = {"sqlite": "#1f6fb4", "postgresql": "#d1632a"}
GREY, INK = "#8a8f98", "#22262d"
STYLE: dict[Any, Any] = {
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 11,
}
# Of two bars, and the space behind them.
GROUP = 2.7
LINES: dict[str, tuple[str, str, Any]] = {
    "loop": ("load, set, save each", "s", (0, (1, 1.2))),
    "pwexpire": ("pwexpire", "o", "-"),
    "floor": ("the least work possible", "^", (0, (5, 2))),
}


def plot(runs: list[Run], path: Path) -> None:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(16, 10), dpi=100)
        for draw, axis in zip((_idle, _flagging, _one, _workers), axes.flat, strict=True):
            if not draw(axis, runs):
                axis.set_axis_off()
                axis.text(0.5, 0.5, "not measured", ha="center", color=GREY)
        said = "  ·  ".join(run["versions"] for run in runs)
        figure.text(
            0.012, 0.012, f"{said}. Medians, with their 95 % intervals.", color=GREY, size=9
        )
        figure.tight_layout(rect=(0, 0.03, 1, 1), h_pad=3, w_pad=3)
        figure.savefig(path)
        plt.close(figure)


def _of(runs: list[Run], section: str) -> list[Run]:
    return [run for run in runs if run.get(section) and "trouble" not in run[section]]


def _errors(spreads: list[Any], factor: float = 1) -> list[list[float]]:
    return [
        [(one["median"] - one["low"]) * factor for one in spreads],
        [(one["high"] - one["median"]) * factor for one in spreads],
    ]


def _short(value: float, _position: Any = None) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _idle(axis: Axes, runs: list[Run]) -> bool:
    found = _of(runs, "idle")
    if not found:
        return False
    names = [row["name"] for row in found[0]["idle"]["requests"] if "time" in row]
    height = 0.8 / len(found)
    for place, run in enumerate(found):
        rows = {row["name"]: row for row in run["idle"]["requests"] if "time" in row}
        spots = [n + (place - (len(found) - 1) / 2) * height for n in range(len(names))]
        spreads = [rows[name]["time"] for name in names if name in rows]
        spots = [spot for spot, name in zip(spots, names, strict=True) if name in rows]
        axis.barh(
            spots,
            [one["median"] for one in spreads],
            height * 0.9,
            xerr=_errors(spreads),
            error_kw={"ecolor": INK, "elinewidth": 1},
            color=COLOURS[run["database"]],
            label=NAMES[run["database"]],
        )
        for spot, one in zip(spots, spreads, strict=True):
            axis.text(one["high"] + 0.06, spot, f"{one['median']:.2f}", va="center", size=10)
    axis.set_yticks(range(len(names)), [_plain(name) for name in names])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.axvline(1, color=INK, linewidth=1)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.08)
    axis.set_xlabel("time of a request, against the same without (times)")
    axis.set_title("A logged-in user with nothing to change")
    axis.legend(loc="lower right")
    return True


def _plain(name: str) -> str:
    words = name.replace("`", "").replace(" (the noise of this run)", "")
    words = words.removeprefix("Django's ").replace(", a poll", "\na poll")
    return words.replace("django-password-policies-iplweb ", "django-password-\npolicies-iplweb ")


def _flagging(axis: Axes, runs: list[Run]) -> bool:
    found = _of(runs, "flagging")
    for run in found:
        sizes = [size["sessions"] for size in run["flagging"]]
        for way, (_, marker, dashes) in LINES.items():
            spreads = [size["seconds"][way] for size in run["flagging"]]
            axis.errorbar(
                sizes,
                [one["median"] for one in spreads],
                yerr=_errors(spreads),
                color=COLOURS[run["database"]],
                marker=marker,
                markersize=6,
                linestyle=dashes,
                linewidth=2.4 if way == "pwexpire" else 1.6,
                capsize=3,
            )
    if not found:
        return False
    _log(axis, max(([size["sessions"] for size in run["flagging"]] for run in found), key=max))
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(_short))
    axis.set_xlabel("stored sessions")
    axis.set_ylabel("seconds")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    axis.set_title("Flagging n sessions")
    handles: list[Artist] = [
        Line2D([], [], color=INK, marker=marker, linestyle=dashes, label=name)
        for name, marker, dashes in LINES.values()
    ]
    axis.legend(handles=handles + _patches(found), loc="upper left", ncols=2)
    return True


def _patches(runs: list[Run]) -> list[Artist]:
    return [Patch(color=COLOURS[run["database"]], label=NAMES[run["database"]]) for run in runs]


def _log(axis: Axes, ticks: list[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.minorticks_off()


def _one(axis: Axes, runs: list[Run]) -> bool:
    found = _of(runs, "one")
    for run in found:
        spreads = run["one"]["seconds"]
        axis.errorbar(
            run["one"]["sizes"],
            [one["median"] * 1000 for one in spreads],
            yerr=_errors(spreads, 1000),
            color=COLOURS[run["database"]],
            marker="o",
            markersize=7,
            linewidth=2.4,
            capsize=4,
            label=NAMES[run["database"]],
        )
    if not found:
        return False
    _log(axis, max((run["one"]["sizes"] for run in found), key=max))
    axis.set_ylim(0, axis.get_ylim()[1] * 1.25)
    axis.set_xlabel("stored sessions of the whole site")
    axis.set_ylabel("milliseconds")
    axis.set_title("Expiring one user among many")
    axis.legend(loc="lower left", ncols=2)
    return True


def _workers(axis: Axes, runs: list[Run]) -> bool:
    found = _of(runs, "workers")
    for place, run in enumerate(found):
        workers = run["workers"]
        spreads = [workers["seconds"][number] for number in ("1", "2")]
        spots = [place * GROUP, place * GROUP + 1]
        bars = axis.bar(
            spots,
            [one["median"] for one in spreads],
            0.85,
            yerr=_errors(spreads),
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 4},
            color=COLOURS[run["database"]],
        )
        bars[0].set_alpha(0.55)
        top = max(one["high"] for one in spreads)
        axis.text(
            place * GROUP + 0.5,
            top * 1.04,
            f"{workers['faster']['median']:.2f} times as fast",
            ha="center",
            va="bottom",
        )
    if not found:
        return False
    axis.set_xticks(
        [place * GROUP + n for place in range(len(found)) for n in (0, 1)],
        ["one", "two"] * len(found),
    )
    axis.set_xlabel("processes at the same time")
    axis.grid(axis="x", visible=False)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.2)
    axis.set_ylabel("seconds")
    sessions = found[0]["workers"]["sessions"]
    axis.set_title(f"Sharing the work at one batch of {sessions:,} sessions")
    axis.legend(handles=_patches(found), loc="upper right", ncols=2)
    return True
