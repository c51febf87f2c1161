"""Write docs/map.md: every source file with the first sentence of its docstring or head comment.

Run: make map (or python scripts/make_map.py). tests/test_map.py says when the page is stale.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "map.md"
WIDEST = 140  # characters of a sentence that is still read at a glance

INTRODUCTION = """\
Every source file and what it says of itself first. Written by `make map`: mend a file's first sentence, not this page.
How the rooms depend on each other: [architecture.md](architecture.md)."""

# In the order they are read.
ROOMS = ("src/moegauge", "counting", "estimator", "kernels", "bench", "scripts", "tests")
SUFFIXES = (".py", ".cpp", ".h")
# Folders that are no package, so that no docstring says what they hold.
DATA = {
    "counting/releases": "Configs of released checkpoints, from which their headers are laid out (JSON, one a model).",
    "estimator/data": "Published readings, served speeds, claims, hardware; constants learned from them (CSV, JSON).",
    "kernels/cpu/native": "The C++ of the CPU core: executor, kernels per instruction set, formats.",
    "results": "Committed records by device, with their JSON Schema and tables.",
    "scripts": "Programs for who works on the kit: they measure, regenerate data and tables, and check kernels.",
    "src/moegauge/models": "Shapes of known models (JSON, one a model), as `moegauge count --shape` writes them.",
    "tests": "A folder for every room; attacks, GPU and speed apart. `tests/data` holds headers and their counts.",
    "tests/attacks": "Damaged and hostile files, and the header reader against safetensors itself.",
    "tests/bench": "Decode steps, timing, plans, judgement and pages, on made-up devices.",
    "tests/counting": "Counts against published totals, real packers and a loopback Hub.",
    "tests/estimator": "The law, predictions, inversion and back-tests on data whose truth is known.",
    "tests/gpu": "Kernels on a real GPU; skipped with the reason where there is none.",
    "tests/kernels": "Packers and kernels against float64 and independent definitions.",
    "tests/speed": "Timings with pytest-benchmark (`make bench`); no test asserts one.",
}


def sentence(text: str) -> str:
    """The first sentence of a docstring or comment, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    found = re.match(r".+?[.](?= [A-Z`]|$)", paragraph)
    return found[0] if found else paragraph


def said(path: Path) -> str:
    """What a source file says of itself in its first sentence; empty where it says nothing."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return sentence(ast.get_docstring(ast.parse(text)) or "")
    head = re.match(r"(?://[^\n]*\n)*", text)
    return sentence(re.sub(r"(?m)^// ?", "", head[0])) if head else ""


def files() -> Iterator[Path]:
    """Every source file of the rooms: by folder, and by name in each."""
    for room in ROOMS:
        folders = sorted({p.parent for p in (ROOT / room).rglob("*") if p.suffix in SUFFIXES})
        for folder in folders:
            yield from sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)


def sections() -> dict[str, list[tuple[str, str]]]:
    """Of every folder (path from the root) its files: name and sentence."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in files():
        if path.name != "__init__.py":
            found.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append((path.name, said(path)))
    return found


def heading(folder: str) -> str:
    """What a folder holds: its package's sentence, else the line of `DATA`, else the room whose tests it holds."""
    package, tested = ROOT / folder / "__init__.py", folder.removeprefix("tests/")
    if package.exists():
        return said(package)
    return DATA.get(folder) or (f"Tests of `{tested}/`." if folder != tested and (ROOT / tested).is_dir() else "")


def page() -> str:
    """The whole page."""
    lines = ["# Map", "", INTRODUCTION, "", "| page | |", "|---|---|"]
    for path in sorted(p for p in PAGE.parent.glob("*.md") if p != PAGE):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"| [docs/{path.name}]({path.name}) | {title} |")
    for folder, rows in sections().items():
        lines += ["", f"## {folder}/", "", heading(folder), ""]
        lines += ["| file | |", "|---|---|"]
        lines += [f"| [{name}](../{folder}/{name}) | {text.replace('|', chr(92) + '|')} |" for name, text in rows]
    lines += ["", "## Data", "", "| folder | |", "|---|---|"]
    lines += [f"| [{folder}](../{folder}) | {text} |" for folder, text in DATA.items() if folder not in sections()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {sum(len(rows) for rows in sections().values())} files")
