"""Write the tables of README.md and results/README.md from the committed records.

    python scripts/readme_table.py            rewrites what stands between the markers
    python scripts/readme_table.py --check    exits 1 when a page is out of step

README.md gets the released formats, results/README.md every format; both between
`<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moegauge.bench.compare import compare
from moegauge.bench.export import comparison_markdown
from moegauge.record import load, pool

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def tables(root: Path, formats: tuple[str, ...]) -> str:
    """One table per machine with committed decode records, with the command that prints it."""
    parts = []
    for folder in sorted(p for p in (root / "results").iterdir() if p.is_dir()):
        paths = sorted(folder.glob("*.json"))
        records = [load(path) for path in paths]
        if not any(case.kind == "decode" for record in records for case in record.cases):
            continue
        found = compare(pool(records, [path.name for path in paths]))
        latest = max(records, key=lambda record: record.created)
        parts.append(
            comparison_markdown(found, latest, formats=formats)
            + f"\nPrinted by `moegauge report results/{folder.name}/*.json --markdown`.\n"
        )
    return "\n".join(parts)


def renew(text: str, table: str) -> str:
    """`text` with what stands between the markers replaced.

    Raises:
        ValueError: the markers are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def main(root: Path = ROOT) -> int:
    """Rewrite or check both pages; the exit code."""
    stale = []
    for page, formats in (("README.md", ("native",)), ("results/README.md", ())):
        path = root / page
        if not path.is_file() or BEGIN not in path.read_text(encoding="utf-8"):
            print(f"{page}: no markers, left alone")
            continue
        old = path.read_text(encoding="utf-8")
        new = renew(old, tables(root, formats))
        if new != old:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print(f"renewed: {', '.join(stale)}" if stale else "in step")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
