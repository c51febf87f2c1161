"""Draw a chart as inline SVG: axes, lines, marks.

Colours are CSS classes, so the page decides light or dark.

Every mark carries a <title>, every chart a name and a description; all text is escaped here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

# Room for axis labels around the plotting area, in SVG units (a chart is 720 wide).
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 46
LETTER, LINE = 6.8, 14  # SVG units: a letter of a label at 12 px is about this wide, a line this high
MARKS = ("circle", "square", "triangle", "diamond", "cross", "down", "bar", "star")


@dataclass(frozen=True, slots=True)
class Scale:
    """Values onto a stretch of the page. `low` < `high`; a log scale needs `low` > 0."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, log: bool = False, zero: bool = False, margin: float = 0.08) -> Scale:
        """A scale that holds `values` with a margin (a share of their span) on both sides."""
        held = [v for v in values if math.isfinite(v) and (not log or v > 0)]
        low, high = (min(held), max(held)) if held else (1.0, 10.0)
        if log:
            pad = max((high / low) ** margin, 1.05)
            return cls(low / pad, high * pad, True)
        low = min(low, 0.0) if zero else low
        pad = (high - low) * margin or abs(high) * margin or 1.0
        return cls(low if zero and low == 0 else low - pad, high + pad)

    def place(self, value: float) -> float:
        """Share of the way from low to high."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values inside the scale: 1, 2, 5 times powers of ten."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 2000 else (1,)
            found = [m * 10.0**d for d in decades for m in steps]
        else:
            raw = (self.high - self.low) / wanted
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
            found = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [t for t in found if self.low <= t <= self.high]


def number(value: float) -> str:
    """A tick's label: no more digits than it needs."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass
class Chart:
    """A chart under construction; `svg()` gives the element.

    Attributes:
        name: what the chart shows, in a few words (its accessible name).
        about: what to see in it, one sentence (its accessible description).
        x, y: scales.
        x_label, y_label: with unit.
        height: SVG units; the width is 720.
    """

    name: str
    about: str
    x: Scale
    y: Scale
    x_label: str
    y_label: str
    height: int = 420
    x_ticks: Sequence[tuple[float, str]] | None = None
    percent_y: bool = False
    _parts: list[str] = field(default_factory=list)
    _labels: list[tuple[float, float, float]] = field(default_factory=list)  # left, baseline, width of each

    WIDTH = 720

    @property
    def _clip(self) -> str:
        """An id of this chart alone on its page."""
        return "area-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in self.name.lower())

    def px(self, value: float) -> float:
        """Across."""
        return round(LEFT + self.x.place(value) * (self.WIDTH - LEFT - RIGHT), 1)

    def py(self, value: float) -> float:
        """Down."""
        return round(self.height - BOTTOM - self.y.place(value) * (self.height - TOP - BOTTOM), 1)

    def line(self, points: Iterable[tuple[float, float]], css: str, title: str = "") -> None:
        """A polyline through data points, clipped to the plotting area."""
        path = " ".join(f"{self.px(x)},{self.py(y)}" for x, y in points)
        self._parts.append(
            f'<polyline class="line {css}" clip-path="url(#{self._clip})" points="{path}">{_title(title)}</polyline>'
        )

    def whisker(self, x: float, low: float, high: float, css: str) -> None:
        """A vertical interval."""
        path = f"M{self.px(x)} {self.py(low)}V{self.py(high)}"
        self._parts.append(f'<path class="whisker {css}" clip-path="url(#{self._clip})" d="{path}"/>')

    def mark(self, x: float, y: float, shape: int, css: str, title: str) -> None:
        """A filled mark; `shape` counts through MARKS."""
        cx, cy = self.px(x), self.py(y)
        path = _shape(MARKS[shape % len(MARKS)], cx, cy)
        self._parts.append(f'<path class="mark {css}" d="{path}">{_title(title)}</path>')

    def ring(self, x: float, y: float, title: str) -> None:
        """An open ring: a prediction."""
        self._parts.append(f'<circle class="ring" cx="{self.px(x)}" cy="{self.py(y)}" r="7">{_title(title)}</circle>')

    def label(self, x: float, y: float, text: str) -> None:
        """Text beside a point: where it is nearest without covering another label or leaving the chart."""
        wide = LETTER * len(text)
        best: tuple[float, float, float, bool] | None = None
        for dy in (4, -11, 19, -26, 34, -41, 49):  # a line apart, nearest first
            for right in (True, False):
                left = self.px(x) + 11 if right else self.px(x) - 11 - wide
                covered = sum(
                    left < b + wide_b and b < left + wide and abs(self.py(y) + dy - y_b) < LINE
                    for b, y_b, wide_b in self._labels
                )
                out = left < LEFT or left + wide > self.WIDTH or not TOP < self.py(y) + dy < self.height - BOTTOM
                cost = 100.0 * (covered + out) + abs(dy - 4)
                if best is None or cost < best[0]:
                    best = cost, left, self.py(y) + dy, right
        assert best is not None
        _, left, down, right = best
        self._labels.append((left, down, wide))
        at, anchor = (left, "start") if right else (left + wide, "end")
        self._parts.append(
            f'<text class="name" x="{at:.1f}" y="{down:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def _axes(self) -> str:
        bottom, right = self.height - BOTTOM, self.WIDTH - RIGHT
        parts = []
        x_ticks = self.x_ticks if self.x_ticks is not None else [(t, number(t)) for t in self.x.ticks()]
        for value, text in x_ticks:
            at = self.px(value)
            parts.append(f'<path class="grid" d="M{at} {TOP}V{bottom}"/>')
            parts.append(f'<text class="tick" x="{at}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>')
        for value in self.y.ticks():
            at = self.py(value)
            text = f"{100 * value:g} %" if self.percent_y else number(value)
            parts.append(f'<path class="grid" d="M{LEFT} {at}H{right}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 7}" y="{at + 4}" text-anchor="end">{escape(text)}</text>')
        middle = (TOP + bottom) / 2
        parts.append(
            f'<text class="axis" x="{(LEFT + right) / 2}" y="{self.height - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
        )
        parts.append(
            f'<text class="axis" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return "".join(parts)

    def svg(self) -> str:
        """The SVG element."""
        area = f'x="{LEFT}" y="{TOP}" width="{self.WIDTH - LEFT - RIGHT}" height="{self.height - TOP - BOTTOM}"'
        return (
            f'<svg viewBox="0 0 {self.WIDTH} {self.height}" role="img" aria-label="{escape(self.name)}. '
            f'{escape(self.about)}"><desc>{escape(self.about)}</desc>'
            f'<clipPath id="{self._clip}"><rect {area}/></clipPath>{self._axes()}{"".join(self._parts)}</svg>'
        )


def legend(entries: Iterable[tuple[str, str, int | None]]) -> str:
    """A list of (text, css class, shape); shape None draws a line, -1 a ring."""
    items = []
    for text, css, shape in entries:
        if shape is None:
            sample = f'<path class="line {css}" d="M1 8H23"/>'
        elif shape < 0:
            sample = '<circle class="ring" cx="12" cy="8" r="6"/>'
        else:
            sample = f'<path class="mark {css}" d="{_shape(MARKS[shape % len(MARKS)], 12, 8)}"/>'
        items.append(f'<li><svg class="key" viewBox="0 0 24 16" aria-hidden="true">{sample}</svg>{escape(text)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _shape(name: str, x: float, y: float, r: float = 5.0) -> str:
    """Path of a mark of about radius `r` around (x, y)."""
    if name == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "triangle": ((0, -1.15), (1.05, 0.8), (-1.05, 0.8)),
        "diamond": ((0, -1.2), (1.1, 0), (0, 1.2), (-1.1, 0)),
        "down": ((0, 1.15), (1.05, -0.8), (-1.05, -0.8)),
        "bar": ((-1.2, -0.45), (1.2, -0.45), (1.2, 0.45), (-1.2, 0.45)),
        "cross": (
            *((-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4)),
            *((0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)),
        ),
        "star": tuple(
            (reach * math.sin(i * math.pi / 5), -reach * math.cos(i * math.pi / 5))
            for i, reach in enumerate((1.25, 0.55) * 5)
        ),
    }[name]
    return "M" + "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners) + "Z"
