"""The figures as one picture.

draw(parts, machine, Path("bench/results/latest.png"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import Bars, Part
from bench.report import number

OURS, OTHERS, TEXT, FAINT = "#2563eb", "#b8c0cc", "#1f2937", "#6b7280"
COLUMNS = 2


def draw(parts: Sequence[Part], machine: dict[str, Any], path: Path) -> None:
    """Bars are medians, the lines on them reach from the least to the greatest run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    charts = [chart for part in parts for chart in part.charts]
    rows = (len(charts) + COLUMNS - 1) // COLUMNS
    figure = Figure(figsize=(13, 0.7 + 2.6 * rows), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis, chart in zip(axes, charts, strict=False):
        axis.set_title(chart.title, loc="left", fontsize=11, fontweight="bold", color=TEXT)
        (_line if chart.line else _bars)(axis, chart)
        axis.tick_params(colors=TEXT, labelsize=9, length=0)
        for side in ("top", "right", "left", "bottom"):
            axis.spines[side].set_visible(False)
    for axis in axes[len(charts) :]:
        axis.set_visible(False)
    cores = f"{machine['cores']} cores, {machine['processor']}, Python {machine['python']}"
    figure.suptitle(f"torchport serve beside others: {cores}", x=0.01, ha="left", fontsize=10, color=FAINT)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _bars(axis: Any, chart: Bars) -> None:
    names = list(chart.bars)
    spreads = list(chart.bars.values())
    ours = [name.startswith("torchport") for name in names]
    axis.barh(
        names,
        [spread.median for spread in spreads],
        xerr=[
            [spread.median - spread.least for spread in spreads],
            [spread.greatest - spread.median for spread in spreads],
        ],
        color=[OURS if mine or not any(ours) else OTHERS for mine in ours],
        error_kw={"ecolor": TEXT, "elinewidth": 1},
        height=0.62,
    )
    top = max(spread.greatest for spread in spreads)
    for place, spread in enumerate(spreads):
        axis.text(
            spread.greatest + top * 0.015, place, number(spread.median), va="center", color=TEXT, size=9
        )
    axis.set_xlim(0, top * 1.16)
    axis.invert_yaxis()
    axis.set_xticks([])
    axis.set_xlabel(chart.unit, loc="left", fontsize=9, color=FAINT)


def _line(axis: Any, chart: Bars) -> None:
    names = list(chart.bars)
    spreads = list(chart.bars.values())
    medians = [spread.median for spread in spreads]
    axis.fill_between(
        names, [s.least for s in spreads], [s.greatest for s in spreads], color=OURS, alpha=0.15, linewidth=0
    )
    axis.plot(names, medians, color=OURS, marker="o", markersize=4)
    for place, median in enumerate(medians):
        axis.annotate(
            number(median),
            (place, median),
            (0, 6),
            textcoords="offset points",
            ha="center",
            color=TEXT,
            size=9,
        )
    axis.set_ylim(0, max(spread.greatest for spread in spreads) * 1.2)
    axis.set_yticks([])
    axis.set_ylabel(chart.unit, fontsize=9, color=FAINT)
