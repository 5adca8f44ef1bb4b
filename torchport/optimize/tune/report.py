"""Draws what `torchport tune` measured: an SVG picture, and a page.

    picture(outcome)                     # <svg ...>: every point, the front, the SLO, the default, the chosen
    page(record, drawn)                  # tuning.html

The picture shows throughput against latency. It has its own colours for light and dark, so that it can
be used alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from torchport.optimize.tune.search import Outcome, Point
from torchport.verify.report.templates import render

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 460, 64, 24, 34, 46
KINDS = 6
STYLE = """
.tuning { color-scheme: light dark; --ink: #1c1f24; --soft: #667; --line: #e3e4e8; --ground: #fff;
  --slo: #c0262d; --k0: #2563c9; --k1: #b4590c; --k2: #7a3bb0; --k3: #0e7f8a; --k4: #9a7b00; --k5: #64748b; }
@media (prefers-color-scheme: dark) { .tuning { --ink: #e6e8ec; --soft: #9aa1ad; --line: #32363f;
  --ground: #1c1f25; --slo: #ff7a7f; --k0: #7aa8ff; --k1: #f0a35e; --k2: #c39af0; --k3: #5cc8d2;
  --k4: #d9bd4a; --k5: #94a3b8; } }
.tuning text { fill: var(--ink); font: 12px system-ui, sans-serif; } .tuning .ground { fill: var(--ground); }
.tuning text.soft { fill: var(--soft); } .tuning .grid { stroke: var(--line); }
.tuning .front { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.tuning .slo { stroke: var(--slo); stroke-dasharray: 5 4; }
.tuning text.slo { fill: var(--slo); stroke: none; }
.tuning .searched { fill-opacity: 0.35; } .tuning .ring { fill: none; stroke: var(--ink); stroke-width: 2; }
.tuning text.name { font-weight: 600; paint-order: stroke; stroke: var(--ground); stroke-width: 4px; }
""" + "".join(f".tuning .k{n} {{ fill: var(--k{n}); }} " for n in range(KINDS))


class _Plane:
    """The picture's axes: throughput from 0 to the right, logarithmic latency upwards."""

    def __init__(self, points: list[Point], limits: list[float]) -> None:
        self.most = 1.08 * max(p.measured.per_second for p in points)
        latencies = [p.measured.latency_ms["p99"] for p in points] + limits
        self._low, self._high = math.log10(min(latencies) / 1.25), math.log10(max(latencies) * 1.25)

    def x(self, per_second: float) -> float:
        return LEFT + per_second / self.most * (WIDTH - RIGHT - LEFT)

    def y(self, milliseconds: float) -> float:
        share = (math.log10(milliseconds) - self._low) / (self._high - self._low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def across(self) -> list[float]:
        """Round numbers along the throughput."""
        size = 10 ** math.floor(math.log10(self.most / 4))
        step = next(size * n for n in (1, 2, 5, 10) if self.most / (size * n) <= 8)
        return [step * n for n in range(int(self.most / step) + 1)]

    def upwards(self) -> list[float]:
        """1, 2 and 5 of every power of ten along the latency.

        For a wide range they are the powers alone.
        """
        powers = range(math.floor(self._low), math.ceil(self._high) + 1)
        firsts = (1, 2, 5) if self._high - self._low < 3 else (1,)
        found = [first * 10.0**power for power in powers for first in firsts]
        return [value for value in found if self._low <= math.log10(value) <= self._high]


def picture(outcome: Outcome) -> str:
    """Draw every load that was answered without errors.

    Medians of the finals are opaque, single runs pale.
    """
    points = [p for p in outcome.points if not p.measured.errors and p.measured.answers]
    slo, space = outcome.slo, outcome.space
    if not points:
        return _svg([_text(LEFT, HEIGHT / 2, "nothing was answered", "start")])
    limit = slo.latency_ms.get("p99")
    plane = _Plane(points, [limit] if limit else [])
    kinds = list(dict.fromkeys([space.default.kind, *(p.configuration.kind for p in points)]))
    parts = _axes(plane)
    if limit:
        y = plane.y(limit)
        parts.append(_line("slo", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(WIDTH - RIGHT, y - 5, f"p99 {limit:g} ms", "end", "slo"))
    if slo.per_second and slo.per_second < plane.most:
        x = plane.x(slo.per_second)
        parts.append(_line("slo", x, TOP, x, HEIGHT - BOTTOM))
        parts.append(_text(x + 5, TOP + 12, f"{slo.per_second:g}/s", "start", "slo"))
    parts.append(_steps(outcome.front(), plane))
    parts += [_dot(p, plane, kinds.index(p.configuration.kind) % KINDS) for p in points]
    marked = {"default": outcome.nearest_of(space.default)}
    if outcome.chosen is not None and outcome.chosen != space.default:
        marked["chosen"] = outcome.best_of(outcome.chosen)
    for name, point in marked.items():
        if point is not None and point in points:
            x, y = plane.x(point.measured.per_second), plane.y(point.measured.latency_ms["p99"])
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
            # Default and chosen may lie close to each other: one name goes above, the other below.
            parts.append(_text(x, y + (24 if name == "default" else -15), name, "middle", "name"))
    x = LEFT
    for number, (backend, precision) in enumerate(kinds):
        label = f"{backend} {precision}"
        parts.append(f'<circle class="k{number % KINDS}" cx="{x + 5}" cy="14" r="5"/>')
        parts.append(_text(x + 15, 18, label, "start"))
        x += 34 + 7 * len(label)
    return _svg(parts)


def page(record: Mapping[str, Any], drawn: str) -> str:
    """The picture, and every figure of `tuning.json`."""
    points = sorted(record["points"], key=lambda p: (-p["rounds"], -p["per_second"]))
    keys = list(record["default"])
    named = [
        p
        | {
            "is_chosen": all(p[key] == record["chosen"][key] for key in keys),
            "is_default": all(p[key] == record["default"][key] for key in keys),
        }
        for p in points
    ]
    return render("torchport.optimize.tune", "tuning.html.j2", record=record, drawn=drawn, points=named)


def _axes(plane: _Plane) -> list[str]:
    parts = []
    for value in plane.across():
        x = plane.x(value)
        parts.append(_line("grid", x, TOP, x, HEIGHT - BOTTOM))
        parts.append(_text(x, HEIGHT - BOTTOM + 16, f"{value:g}", "middle", "soft"))
    for value in plane.upwards():
        y = plane.y(value)
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 8, y + 4, f"{value:g}", "end", "soft"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "answers a second", "middle", "soft"))
    parts.append(_text(8, TOP - 4, "p99, ms", "start", "soft"))
    return parts


def _steps(front: list[Point], plane: _Plane) -> str:
    """The front as stairs: right of a point, nothing measured is as quick."""
    places: list[tuple[float, float]] = []
    for point in front:
        x, y = plane.x(point.measured.per_second), plane.y(point.measured.latency_ms["p99"])
        if places:
            places.append((places[-1][0], y))
        places.append((x, y))
    return f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'


def _dot(point: Point, plane: _Plane, kind: int) -> str:
    measured = point.measured
    x, y = plane.x(measured.per_second), plane.y(measured.latency_ms["p99"])
    said = (
        f"{point.configuration}, {point.connections} connections: {measured.per_second:.4g}/s, "
        f"p50 {measured.latency_ms['p50']:.3g} ms, p99 {measured.latency_ms['p99']:.3g} ms"
    )
    name, size = ("", 5) if point.rounds else (" searched", 3.5)
    title = f"<title>{escape(said)}</title>"
    return f'<circle class="k{kind}{name}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{title}</circle>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: list[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    name = 'role="img" aria-label="throughput against latency"'
    ground = f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="10"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="tuning" {size} {name}>'
    return f"{head}<style>{STYLE}</style>{ground}{''.join(parts)}</svg>\n"
