"""HTML elements the pages share: the whole document, a table, a chart with legend and caption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from moegauge import __version__
from moegauge.bench.report.svg import Chart, legend


def document(title: str, body: Iterable[str]) -> str:
    """A page of its own: style inside, no script, nothing loaded. Parts of `body` are HTML already; empty ones fall
    out."""
    files = resources.files("moegauge.bench.report")
    return Template((files / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        version=escape(__version__),
        style=(files / "report.css").read_text(encoding="utf-8"),
        body="\n".join(part for part in body if part),
    )


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table whose first `words` columns are text. Cells are escaped; a cell that starts with `!` is set as bad."""
    head = "".join(f'<th scope="col"{_text_class(i, words)}>{escape(h)}</th>' for i, h in enumerate(headings))
    body = "".join(f"<tr>{''.join(_cell(cell, i, words) for i, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>{escape(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _text_class(index: int, words: int) -> str:
    return ' class="t"' if index < words else ""


def _cell(text: str, index: int, words: int) -> str:
    if index == 0:
        return f'<th scope="row" class="t">{escape(text)}</th>'
    if text.startswith("!"):
        return f'<td class="bad">{escape(text[1:])}</td>'
    return f"<td{_text_class(index, words)}>{escape(text)}</td>"


def figure(chart: Chart, entries: Sequence[tuple[str, str, int | None]], caption: str) -> str:
    """Legend, chart and caption; `entries` as `legend` takes them."""
    return f"<figure>{legend(entries)}{chart.svg()}<figcaption>{escape(caption)}</figcaption></figure>"
