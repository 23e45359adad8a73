"""The figures of a run as one picture. Needs matplotlib."""

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

from tests.bench.record import DATABASES, Row, Run, databases, digest, number, rows, shown

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


def plot(run: Run, path: Path) -> None:
    """The picture carries the digest of the run that it shows."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(16, 10), dpi=100)
        for draw, axis in zip((_idle, _flagging, _one, _workers), axes.flat, strict=True):
            if not draw(axis, run):
                axis.set_axis_off()
                axis.text(0.5, 0.5, "not measured", ha="center", color=GREY)
        said = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        said += f", {run['machine']['cores']} cores, {run['date'][:10]}"
        figure.text(
            0.012, 0.012, f"{said}. Medians, with their 95 % intervals.", color=GREY, size=9
        )
        figure.tight_layout(rect=(0, 0.03, 1, 1), h_pad=3, w_pad=3)
        figure.savefig(path, metadata={"Description": digest(run)})
        plt.close(figure)


def _values(found: list[Row]) -> list[float]:
    return [row["value"] for row in found]


def _errors(found: list[Row], factor: float = 1) -> list[list[float]]:
    return [
        [(row["value"] - row["low"]) * factor for row in found],
        [(row["high"] - row["value"]) * factor for row in found],
    ]


def _short(value: float, _position: Any = None) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _idle(axis: Axes, run: Run) -> bool:
    found = databases(run, "request_cpu")
    if not found:
        return False
    names = [row["of"] for row in rows(run, "request_cpu", found[0])]
    height = 0.8 / len(found)
    for place, database in enumerate(found):
        bars = [row for row in rows(run, "request_cpu", database) if row["of"] in names]
        shift = (place - (len(found) - 1) / 2) * height
        spots = [names.index(row["of"]) + shift for row in bars]
        axis.barh(
            spots,
            _values(bars),
            height * 0.9,
            xerr=_errors(bars),
            error_kw={"ecolor": INK, "elinewidth": 1},
            color=COLOURS[database],
            label=DATABASES[database],
        )
        for spot, row in zip(spots, bars, strict=True):
            axis.text(row["high"] + 0.06, spot, number(row), va="center", size=10)
    axis.set_yticks(range(len(names)), [_plain(name) for name in names])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.axvline(1, color=INK, linewidth=1)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.08)
    axis.set_xlabel("processor time of a request, against the same without (times)")
    axis.set_title("A logged-in user with nothing to change")
    axis.legend(loc="lower right")
    return True


def _plain(name: str) -> str:
    words = name.replace("`", "").replace(" (the noise of this run)", "")
    words = words.removeprefix("Django's ").replace(", a poll", "\na poll")
    return words.replace("django-password-policies-iplweb ", "django-password-\npolicies-iplweb ")


def _flagging(axis: Axes, run: Run) -> bool:
    found = databases(run, *(f"{way}_seconds" for way in LINES))
    if not found:
        return False
    for database in found:
        for way, (_, marker, dashes) in LINES.items():
            points = rows(run, f"{way}_seconds", database)
            axis.errorbar(
                [row["of"] for row in points],
                _values(points),
                yerr=_errors(points),
                color=COLOURS[database],
                marker=marker,
                markersize=6,
                linestyle=dashes,
                linewidth=2.4 if way == "pwexpire" else 1.6,
                capsize=3,
            )
    _log(axis, [row["of"] for row in rows(run, "pwexpire_seconds", found[0])])
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


def _patches(found: list[str]) -> list[Artist]:
    return [Patch(color=COLOURS[name], label=DATABASES[name]) for name in found]


def _log(axis: Axes, ticks: list[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.minorticks_off()


def _one(axis: Axes, run: Run) -> bool:
    found = databases(run, "one_seconds")
    if not found:
        return False
    for database in found:
        points = rows(run, "one_seconds", database)
        axis.errorbar(
            [row["of"] for row in points],
            [value * 1000 for value in _values(points)],
            yerr=_errors(points, 1000),
            color=COLOURS[database],
            marker="o",
            markersize=7,
            linewidth=2.4,
            capsize=4,
            label=DATABASES[database],
        )
    _log(axis, [row["of"] for row in rows(run, "one_seconds", found[0])])
    axis.set_ylim(0, axis.get_ylim()[1] * 1.25)
    axis.set_xlabel("stored sessions of the whole site")
    axis.set_ylabel("milliseconds")
    axis.set_title("Expiring one user among many")
    axis.legend(loc="lower left", ncols=2)
    return True


def _workers(axis: Axes, run: Run) -> bool:
    found = databases(run, "batch_seconds", "workers_faster")
    if not found:
        return False
    for place, database in enumerate(found):
        pair = rows(run, "batch_seconds", database)
        bars = axis.bar(
            [place * GROUP, place * GROUP + 1],
            _values(pair),
            0.85,
            yerr=_errors(pair),
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 4},
            color=COLOURS[database],
        )
        bars[0].set_alpha(0.55)
        (faster,) = rows(run, "workers_faster", database)
        axis.text(
            place * GROUP + 0.5,
            max(row["high"] for row in pair) * 1.04,
            shown(faster, interval=False),
            ha="center",
            va="bottom",
        )
    axis.set_xticks(
        [place * GROUP + n for place in range(len(found)) for n in (0, 1)],
        ["one", "two"] * len(found),
    )
    axis.set_xlabel("processes at the same time")
    axis.grid(axis="x", visible=False)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.2)
    axis.set_ylabel("seconds")
    axis.set_title(f"Sharing the work at one batch of {faster['of']:,} sessions")
    axis.legend(handles=_patches(found), loc="upper right", ncols=2)
    return True
