"""Write the tables of README.md and results/README.md from the committed records.

    python scripts/readme_table.py            rewrites what stands between the markers
    python scripts/readme_table.py --check    exits 1 when a page is out of step

README.md gets the released formats, results/README.md every format; both between
`<!-- results:begin -->` and `<!-- results:end -->`. README.md also gets a real count between `<!-- count:begin -->` and
`<!-- count:end -->`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from moegauge.bench.compare import compare
from moegauge.bench.export import comparison_markdown
from moegauge.record import load, pool

ROOT = Path(__file__).resolve().parent.parent
COUNTED = "deepseek-v3"


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


def counted() -> str:
    """What `moegauge count` prints for a released checkpoint's headers, laid out in an empty folder."""
    moegauge = [sys.executable, "-m", "moegauge"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*moegauge, "models", COUNTED, "--layout", COUNTED], cwd=folder, check=True, capture_output=True)
        out = subprocess.run(
            [*moegauge, "count", COUNTED],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "100"},
        ).stdout
    text = "\n".join(line.rstrip() for line in out.splitlines())
    made = f"moegauge models {COUNTED} --layout {COUNTED} && moegauge count {COUNTED}"
    return f"```console\n$ {made}\n{text}\n```\n"


def renew(text: str, mark: str, table: str) -> str:
    """`text` with what stands between the markers of `mark` replaced.

    Raises:
        ValueError: the markers are missing.
    """
    first, last = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"no {first} ... {last}")
    return f"{before}{first}\n\n{table}\n{last}{after}"


def main(root: Path = ROOT) -> int:
    """Rewrite or check both pages; the exit code."""
    stale = []
    for page, formats in (("README.md", ("native",)), ("results/README.md", ())):
        path = root / page
        old = path.read_text(encoding="utf-8")
        new = renew(old, "results", tables(root, formats))
        if "<!-- count:begin -->" in old:
            new = renew(new, "count", counted())
        if new != old:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print(f"renewed: {', '.join(stale)}" if stale else "in step")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
