"""The laws of docs/architecture.md, read off the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from moegauge.formats import BITS, FORMATS

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "counting": ROOT / "counting",
    "estimator": ROOT / "estimator",
    "kernels": ROOT / "kernels",
    "bench": ROOT / "bench",
    "root": ROOT / "src" / "moegauge",
}
FILES = [(room, path) for room, folder in ROOMS.items() for path in sorted(folder.rglob("*.py"))]
# What a room may import of ours besides the root package and itself.
ALLOWED = {
    "counting": set(),
    "estimator": set(),
    "kernels": set(),
    "bench": {"kernels", "estimator", "counting"},
    "root": {"counting", "estimator", "kernels", "bench"},  # lazily: see test_root_imports_rooms_inside_functions
}
HEAVY = {"torch", "triton", "scipy", "pyarrow"}
COMPARE_AND_VALIDATE = {"compare.py", "validation.py"}


def imports(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.append((node.module or "", node))
            if node.module == "moegauge":
                found += [(f"moegauge.{alias.name}", node) for alias in node.names]
    return found


def top_level(tree: ast.Module) -> list[tuple[str, ast.stmt]]:
    """Imports that run when the module is imported: not inside a function, not under TYPE_CHECKING."""
    found: list[tuple[str, ast.stmt]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        runs: ast.AST = node
        if isinstance(node, ast.ClassDef):
            runs = ast.Module([n for n in node.body if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)], [])
        found += imports(runs)
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "moegauge" and len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda v: v if isinstance(v, str) else v.name)
def test_imports_obey_the_laws(room: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module, _ in imports(tree):
        other = room_of(module)
        if other and other != room:
            assert other in ALLOWED[room], f"{path.name}: {room} imports {module}"
        if room == "bench" and other == "counting":
            assert path.name in COMPARE_AND_VALIDATE, f"{path.name}: only compare and validate see counting"
        if room in ("counting", "estimator"):
            assert module.split(".")[0] not in ("torch", "triton"), f"{path.name}: {room} imports {module}"


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda v: v if isinstance(v, str) else v.name)
def test_nothing_heavy_loads_at_import(room: str, path: Path) -> None:
    if "triton" in path.relative_to(ROOT).parts:
        return  # a Triton kernel is decorated when its module is imported; callers import that module lazily
    for module, _ in top_level(ast.parse(path.read_text(encoding="utf-8"))):
        assert module.split(".")[0] not in HEAVY, f"{path.name}: imports {module} at import time"
        if room == "root" and path.parent.name != "commands":  # a command's module is imported when it runs
            assert room_of(module) in (None, "root"), f"{path.name}: imports {module} at import time"


# Who may write to a terminal, a spreadsheet: each lets nothing through that somebody else wrote as it is.
GATES = {
    "commands/_output.py": ("print", "click.echo", "sys.stdout.write", "sys.stderr.write"),
    "cli.py": ("click.echo",),
    "text.py": ("csv.writer",),
}


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda v: v if isinstance(v, str) else v.name)
def test_there_is_one_gate_for_what_is_printed(room: str, path: Path) -> None:
    """`commands/_output` prints, `text.csv_text` writes CSV; tests/attacks/test_hostile_text.py says what they hold."""
    allowed = next((calls for name, calls in GATES.items() if room == "root" and path.as_posix().endswith(name)), ())
    barred = {call for calls in GATES.values() for call in calls} | {"csv.DictWriter", "click.secho", "rich.print"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in barred - set(allowed), f"{path.name}:{node.lineno}: {called}"


def test_the_repository_names_no_machine_of_ours() -> None:
    words = [
        "/wo" + "rk/",
        "../sha" + "red",
        "../.lib" + "rary",
        "/tmp/" + "bash",
        "/opt/" + "wheels",
        "/opt/" + "pypi",
    ]
    skip = {
        ".git",
        ".venv",
        "build",
        "dist",
        "__pycache__",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
    }
    for path in ROOT.rglob("*"):
        if not path.is_file() or skip.intersection(path.relative_to(ROOT).parts) or path.stat().st_size > 4_000_000:
            continue
        if path.suffix in (".so", ".png", ".pyc"):
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        for word in words:
            assert word not in text, f"{path.relative_to(ROOT)} names {word}"


def test_a_shape_is_cast_to_a_format_in_one_place() -> None:
    """`ModelShape.cast` at the top; nothing below takes a shape and a weight format both."""
    for room, path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                shapes = any(a.annotation and "ModelShape" in ast.unparse(a.annotation) for a in given)
                formats = {a.arg for a in given} & {"format", "fmt", "weight_format"}
                assert not (shapes and formats), (
                    f"{room}/{path.name}:{node.lineno}: {node.name} takes a shape and a format"
                )


def test_no_branch_on_the_name_of_a_family() -> None:
    """What a family does differently is a row of `counting.families` or a field of the shape."""
    for room, path in FILES:
        if path.name == "families.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asked: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                asked = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                asked = [node.func.value] if node.func.attr in ("startswith", "endswith", "find") else []
            assert not any(isinstance(a, ast.Attribute) and a.attr == "family" for a in asked), (
                f"{room}/{path.name}:{node.lineno}"
            )


def modules() -> dict[str, Path]:
    """Import name -> file, of every module of the package."""
    found = {}
    for room, folder in ROOMS.items():
        base = folder if room == "root" else folder.parent
        for path in sorted(folder.rglob("*.py")):
            parts = ["moegauge", *path.relative_to(base).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which imports, by way of others, every other of its group."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in edges[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    far = {name: reached(name) for name in edges}
    groups = {frozenset({name, *(other for other in far[name] if name in far[other])}) for name in edges}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_no_module_imports_itself_by_way_of_others() -> None:
    """An import inside a function or under TYPE_CHECKING is one too: two files that need each other are one file."""
    known = modules()
    edges: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
                edges[name] |= whole or ({node.module} & known.keys())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({name: found - {name} for name, found in edges.items()}) == []


# Formats whose names are not also types of elements, vectors or caches.
FORMAT_NAMES = frozenset(FORMATS) - frozenset(BITS)
TRAITS_FILES = {"kernels/triton/device/formats.py", "kernels/cpu/native/formats.h"}


def _strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@pytest.mark.parametrize("path", [p for room, p in FILES if room in ("kernels", "estimator")], ids=lambda p: p.name)
def test_a_format_is_traits_in_python(path: Path) -> None:
    """No kernel and no law asks for a format by name: it asks what the format's elements, scales and groups are."""
    if path.relative_to(ROOT).as_posix() in TRAITS_FILES:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:80]}"
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            asked = any("format" in ast.unparse(side).rpartition(".")[2].lower() for side in sides)
            found = set().union(*map(_strings, sides))
            assert not found & (frozenset(FORMATS) if asked else FORMAT_NAMES), where
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in ("startswith", "endswith"):
            assert "format" not in ast.unparse(called.value).lower(), where
            assert not _strings(node) & FORMAT_NAMES, where
        if isinstance(node, ast.Dict) and "kernels" in path.parts:  # a table of formats is a second table of traits
            assert len({k.value for k in node.keys if isinstance(k, ast.Constant)} & FORMAT_NAMES) < 2, where


@pytest.mark.parametrize("path", sorted((ROOT / "kernels" / "cpu" / "native").glob("*")), ids=lambda p: p.name)
def test_a_format_is_traits_in_the_core(path: Path) -> None:
    """formats.h lists the formats; elsewhere there are indices of that list and types of elements and scales."""
    if path.relative_to(ROOT).as_posix() in TRAITS_FILES:
        return
    code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    names = "|".join(name.upper() for name in sorted(FORMATS, key=len, reverse=True))
    found = re.findall(rf"\b(?:format|FORMAT)\b\s*[=!]=\s*\w+|(?<!::)\b(?:{names})\b(?!\s*=\s*\d)", code)
    assert not found, f"{path.name}: {found}"


# Names that still mean two things, of readings, records and steps. The list only gets shorter.
HOMONYMS = {"Case", "Pairs", "Traffic"}


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, set[str]] = {}
    for room, path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, set()).add(f"{room}/{path.name}")
    twice = {name: sorted(found) for name, found in places.items() if len(found) > 1 and name not in HOMONYMS}
    assert not twice
