"""Run mypy --strict over `moegauge` as users import it.

The folders map onto the package through setuptools' package-dir, which mypy does not read, so this lays the package
out once more as symbolic links under build/types and points mypy there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lay_out(view: Path) -> None:
    """Make `view`/moegauge, every package of pyproject's package-dir linked file by file."""
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in mapping.items():
        target = view.joinpath(*package.split("."))
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():
            if old.is_symlink():
                old.unlink()
        for file in (ROOT / folder).iterdir():
            if file.is_file() and (file.suffix in (".py", ".pyi") or file.name == "py.typed"):
                (target / file.name).symlink_to(file)


def main() -> int:
    """Lay out and check; mypy's exit code."""
    view = ROOT / "build" / "types"
    lay_out(view)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "moegauge", *sys.argv[1:]],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(view)},
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
