"""Write the tables of README.md, results/README.md and docs/measuring.md from the committed records.

    python scripts/readme_table.py            rewrites what stands between the markers
    python scripts/readme_table.py --check    exits 1 when a page is out of step

README.md gets the released formats on the machine measured last, results/README.md every format and machine,
docs/measuring.md the agreement of two runs of one suite; each between `<!-- results:begin -->` and
`<!-- results:end -->`. README.md also gets other programs beside this kit between `<!-- peers:begin -->` and
`<!-- peers:end -->`, and a real count between `<!-- count:begin -->` and `<!-- count:end -->`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from moegauge.bench.judge.compare import compare
from moegauge.bench.judge.two_records import against
from moegauge.bench.report.tables import comparison_markdown, peers_markdown, verdict_markdown
from moegauge.record import Record, load, pool

ROOT = Path(__file__).resolve().parent.parent
COUNTED = "deepseek-v3"


def machines(root: Path) -> list[tuple[Path, list[Path], list[Record]]]:
    """(folder, records' paths, records) of every machine with committed decode records, the last measured first."""
    found = []
    for folder in sorted(p for p in (root / "results").iterdir() if p.is_dir()):
        paths = sorted(folder.glob("*.json"))
        records = [load(path) for path in paths]
        if any(case.kind == "decode" for record in records for case in record.cases):
            found.append((folder, paths, records))
    return sorted(found, key=lambda machine: max(r.created for r in machine[2]), reverse=True)


def peers(root: Path) -> str:
    """Other programs on the machine measured last."""
    folder, _, records = machines(root)[0]
    text = peers_markdown(records)
    return f"{text}\nPrinted by `moegauge report results/{folder.name}/*peers*.json --markdown`.\n"


def tables(root: Path, formats: tuple[str, ...], most: int | None = None) -> str:
    """One table per machine, the last measured first, with the command that prints it."""
    parts = []
    for folder, paths, records in machines(root)[:most]:
        found = compare(pool(records, [path.name for path in paths]))
        latest = max(records, key=lambda record: record.created)
        parts.append(
            comparison_markdown(found, latest, formats=formats)
            + f"\nPrinted by `moegauge report results/{folder.name}/*.json --markdown`.\n"
        )
    return "\n".join(parts)


def agreement(root: Path) -> str:
    """Per machine and suite measured twice: the latest run against the one before, point by point."""
    parts = []
    for folder in sorted(p for p in (root / "results").iterdir() if p.is_dir()):
        runs: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("*.json"), key=lambda p: load(p).created):
            runs.setdefault(load(path).suite or "", []).append(path)
        for suite, paths in runs.items():
            if suite and len(paths) > 1:
                names = [f"results/{folder.name}/{path.name}" for path in paths[-2:]]
                text = verdict_markdown(against(load(paths[-2]), load(paths[-1])))
                parts.append(f"{text}\nPrinted by `moegauge compare {names[0]} --against {names[1]}`.\n")
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


PAGES: dict[str, Callable[[Path], str]] = {
    "README.md": lambda root: tables(root, ("native",), most=1),
    "results/README.md": lambda root: tables(root, ()),
    "docs/measuring.md": agreement,
}


def main(root: Path = ROOT) -> int:
    """Rewrite or check every page; the exit code."""
    stale = []
    for page, make in PAGES.items():
        path = root / page
        old = path.read_text(encoding="utf-8")
        new = renew(old, "results", make(root))
        if "<!-- peers:begin -->" in old:
            new = renew(new, "peers", peers(root))
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
