"""What pip installs: the wheel holds every module of the folders and nothing at the top but `moegauge`."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from moegauge.counting.sources import release_layout

ROOT = Path(__file__).resolve().parent.parent
MAPPING: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    # A copy, so that building leaves no build/ or egg-info beside the sources.
    tree = out / "tree"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\n")
    if not any(names):
        pytest.skip("not a git checkout: cannot tell sources from build outputs")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file() and not name.startswith(("tests/", "results/")):
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    # What the wheel holds is asked here; compiling the core again would take a minute.
    pyproject = tree / "pyproject.toml"
    text = pyproject.read_text()
    assert "[[tool.setuptools.ext-modules]]" in text
    pyproject.write_text(re.sub(r"\[\[tool\.setuptools\.ext-modules\]\].*?(?=\n\[)", "", text, flags=re.DOTALL))
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)],
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_every_module(wheel_names: list[str]) -> None:
    wanted = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in MAPPING.items()
        for path in (ROOT / folder).glob("*.py")
    }
    assert wanted <= set(wheel_names)
    assert "moegauge/py.typed" in wheel_names


def test_every_folder_with_modules_is_a_listed_package() -> None:
    listed = {(ROOT / folder).resolve() for folder in MAPPING.values()}
    for room in ("counting", "estimator", "kernels", "bench", "src/moegauge"):
        for path in (ROOT / room).rglob("*.py"):
            assert path.parent in listed, f"{path.parent} is not in package-dir: it would be missing from the wheel"


def test_data_files_are_in_the_wheel(wheel_names: list[str]) -> None:
    for package, folder in MAPPING.items():
        for pattern in ("*.json", "*.csv", "*.html", "*.css", "*.js", "*.cpp", "*.h"):
            for path in (ROOT / folder).glob(pattern):
                assert f"{package.replace('.', '/')}/{path.name}" in wheel_names


def test_nothing_but_moegauge_at_the_top(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert all(top == "moegauge" or top.startswith("moegauge-") for top in tops), tops


@pytest.mark.parametrize(
    "command",
    [
        "count CHECKPOINT",
        "predict gpt-oss-20b --bandwidth 100",
        "--help",
        "count --help",
        "predict --help",
        "estimate --help",
        "models --json",
    ],
)
def test_commands_run_without_torch(command: str, tmp_path: Path) -> None:
    """The interpreter's own list of modules after the command, read at exit."""
    release_layout.write(tmp_path / "checkpoint", release_layout.release("gpt-oss-20b")["config"])
    command = command.replace("CHECKPOINT", str(tmp_path / "checkpoint"))
    code = (
        "import sys, atexit\n"
        "from moegauge.cli import main\n"
        "atexit.register(lambda: sys.stderr.write('LOADED ' + ' '.join(sorted(sys.modules))))\n"
        f"main({command.split()!r})\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = run.stderr.split("LOADED ")[1].split()
    heavy = {"torch", "triton"}
    if command.endswith(("--help", "--json")) or command.startswith("count"):
        heavy |= {"scipy", "huggingface_hub", "matplotlib"}  # a folder needs no network
    assert heavy.isdisjoint(loaded), heavy.intersection(loaded)


LOCK = (ROOT / "requirements-dev.lock").read_text()


def test_everything_the_environment_takes_is_locked_with_hashes() -> None:
    """But torch and triton, whose wheels differ from index to index."""
    pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", LOCK, flags=re.MULTILINE))
    blocks = re.split(r"^(?=[a-z0-9.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins) > 40
    assert all("--hash=sha256:" in block for block in blocks)
    constraints = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    kept = {name.lower().replace("_", "-"): version for name, version in constraints}
    assert kept.keys() - pins.keys() == {"torch", "triton"}
    assert not {name for name, version in kept.items() if pins.get(name, version) != version}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *extras["parquet"],
        *extras["dev"],
        *project["build-system"]["requires"],
    ]
    for requirement in map(Requirement, wanted):
        assert pins[requirement.name.lower().replace("_", "-")] in requirement.specifier, str(requirement)


def test_the_build_requirement_is_bounded() -> None:
    (requirement,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert "<" in requirement
