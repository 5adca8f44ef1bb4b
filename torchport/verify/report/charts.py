"""Draws the report's charts as SVG, with the colours of the page's style sheet.

They need no script and no font.

dots([Series("onnxruntime", [("sample 0", 0.18), ...])], bound=1.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, RIGHT = 860, 24
ROW, TOP, BOTTOM = 18, 20, 34
LEFT, WIDEST = 70, 300
"""Pixels for labels at the left: at least, and at most."""
LETTER = 6.6
"""Pixels that a letter of a label takes, about: the page has no font of its own to measure."""
HEIGHT = 260
FLOOR = 1e-4
"""A share of the bound below which errors are drawn as if they were this: nobody asks how far below."""


@dataclass(frozen=True)
class Series:
    """A name and its points: by label, or by position."""

    name: str
    points: Sequence[tuple[str, float]]


class _Log:
    """A logarithmic axis in whole decades: values `low` to `high`, pixels `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low = math.floor(math.log10(low))
        self.high = max(self.low + 1, math.ceil(math.log10(high)))
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        place = self.high if math.isinf(value) else math.log10(max(value, 10.0**self.low))
        share = (min(place, self.high) - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[tuple[float, str]]:
        step = max(1, (self.high - self.low) // 8)
        return [(self.at(10.0**e), _power(e)) for e in range(self.low, self.high + 1, step)]


def dots(series: Sequence[Series]) -> str:
    """A chart with one line for each label and a dot for each series.

    A dot's position is its share of the bound, which is marked.
    """
    labels = list(dict.fromkeys(label for one in series for label, _ in one.points))
    worst = max((v for one in series for _, v in one.points if math.isfinite(v)), default=1.0)
    left = _room(labels)
    axis = _Log(FLOOR, max(10.0, worst), left, WIDTH - RIGHT)
    height = TOP + ROW * len(labels) + BOTTOM
    base = height - BOTTOM
    parts = [_vertical(x, base, text) for x, text in axis.ticks()]
    parts.append(_bound_line(axis.at(1.0), base))
    for index, label in enumerate(labels):
        y = TOP + ROW * (index + 0.5)
        parts.append(_label(left, y + 4, label))
        parts.append(_across(y, left))
    for number, one in enumerate(series):
        for label, value in one.points:
            y = TOP + ROW * (labels.index(label) + 0.5)
            said = escape(f"{one.name}, {label}: {_percent(value)} of the bound")
            title = f"<title>{said}</title>"
            kind = "over" if not value <= 1 else f"s{number}"
            parts.append(
                f'<circle class="{kind}" cx="{axis.at(value):.1f}" cy="{y:.1f}" r="4.5">{title}</circle>'
            )
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 4, "error, as a share of the bound", "middle"))
    return _svg(parts, height, "errors by case")


def curves(series: Sequence[Series], horizontal: Sequence[float]) -> str:
    """A chart of cumulative error distributions, one curve for each series."""
    axis = _Log(FLOOR, 10.0, LEFT, WIDTH - RIGHT)
    base = HEIGHT - BOTTOM
    parts = [_vertical(x, base, text) for x, text in axis.ticks()]
    parts.append(_bound_line(axis.at(1.0), base))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = base - share * (base - TOP)
        parts.append(_text(LEFT - 8, y + 4, f"{share:.0%}", "end"))
        parts.append(_across(y))
    for number, one in enumerate(series):
        places = [
            f"{axis.at(value):.1f},{base - share * (base - TOP):.1f}"
            for share, (_, value) in zip(horizontal, one.points, strict=True)
        ]
        parts.append(f'<polyline class="line s{number}" points="{" ".join(places)}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "error, as a share of the bound", "middle"))
    return _svg(parts, HEIGHT, "how the errors are spread")


def growth(labels: Sequence[str], series: Sequence[Series]) -> str:
    """Errors from the first layer to the last, on one logarithmic axis."""
    values = [v for one in series for _, v in one.points if v > 0 and math.isfinite(v)]
    if not values:
        return ""
    base = HEIGHT - BOTTOM
    axis = _Log(min(values), max(values), base, TOP)
    step = (WIDTH - RIGHT - LEFT) / max(1, len(labels) - 1)
    parts = []
    for y, text in axis.ticks():
        parts.append(_text(LEFT - 8, y + 4, text, "end"))
        parts.append(_across(y))
    for number, one in enumerate(series):
        places = [f"{LEFT + i * step:.1f},{axis.at(v):.1f}" for i, (_, v) in enumerate(one.points)]
        parts.append(f'<polyline class="line g{number}" points="{" ".join(places)}"/>')
        parts += [
            f'<circle class="g{number}" cx="{LEFT + i * step:.1f}" cy="{axis.at(v):.1f}" r="3">'
            f"<title>{escape(label)}, {escape(one.name)}: {v:.3g}</title></circle>"
            for i, (label, v) in enumerate(one.points)
        ]
    half = (WIDTH - RIGHT - LEFT) / 2 - 12
    for x, label, anchor in ((LEFT, labels[0], "start"), (WIDTH - RIGHT, labels[-1], "end")):
        parts.append(_titled(_text(x, HEIGHT - 12, _shortened(label, half), anchor), label))
    return _svg(parts, HEIGHT, "errors from layer to layer")


def heat_map(rows: Sequence[str], columns: Sequence[str], shares: Mapping[tuple[str, str], float]) -> str:
    """A chart with one square for each pair of sizes.

    A square is darker the nearer its error is to the bound.
    """
    cell, top, left = 46, 22, _room(rows)
    height = top + 24 * len(rows) + 8
    parts = [_text(left + cell * (j + 0.5), 14, column, "middle") for j, column in enumerate(columns)]
    for i, row in enumerate(rows):
        y = top + 24 * i
        parts.append(_label(left, y + 16, row))
        for j, column in enumerate(columns):
            share = shares.get((row, column))
            if share is None:
                continue
            x = left + cell * j
            opacity = 0.06 + 0.94 * min(1.0, math.sqrt(max(0.0, share)))
            kind = "over" if not share <= 1 else "heat"
            style = "" if kind == "over" else f' style="fill-opacity:{opacity:.2f}"'
            parts.append(
                f'<rect class="{kind}"{style} x="{x}" y="{y}" width="{cell - 3}" height="21" rx="3"/>'
            )
            parts.append(_text(x + (cell - 3) / 2, y + 15, _percent(share), "middle", "cell"))
    return _svg(parts, height, "errors over the swept dimensions")


def _vertical(x: float, base: float, text: str) -> str:
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>'
    return line + _text(x, base + 14, text, "middle")


def _bound_line(x: float, base: float) -> str:
    line = f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>'
    return line + _text(x, TOP - 6, "bound", "middle")


def _across(y: float, left: float = LEFT) -> str:
    return f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _room(labels: Sequence[str]) -> float:
    """Pixels that a chart leaves at its left for these labels."""
    return min(WIDEST, max(LEFT, 12 + LETTER * max(map(len, labels), default=0)))


def _label(left: float, y: float, text: str) -> str:
    """A label before a line, whole where there is room."""
    return _titled(_text(left - 8, y, _shortened(text, left - 12), "end"), text)


def _shortened(text: str, room: float) -> str:
    """A label shortened to fit the given pixels.

    Its middle is left out, because names differ at their ends.
    """
    fits = int(room / LETTER)
    if len(text) <= fits:
        return text
    return f"{text[: fits // 2]}…{text[len(text) - (fits - 1 - fits // 2) :]}"


def _titled(part: str, title: str) -> str:
    return f"<g><title>{escape(title)}</title>{part}</g>"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, name: str) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(name)}">'
    return f"{head}{''.join(parts)}</svg>"


def _percent(share: float) -> str:
    if math.isinf(share):
        return "∞"
    return f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"


def _power(exponent: int) -> str:
    if -2 <= exponent <= 1:
        return f"{10.0**exponent:g}"
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}"
