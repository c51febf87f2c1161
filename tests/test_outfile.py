"""Result files: whole or absent, never over another's, one line for every way a system refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from moegauge import outfile
from moegauge.errors import OutputError


def refuse(number: int) -> Callable[..., Any]:
    def refused(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_written_whole_with_its_folders(tmp_path: Path) -> None:
    outfile.write(tmp_path / "new" / "folder" / "x.json", "\u00e9\n")
    assert (tmp_path / "new" / "folder" / "x.json").read_bytes() == "\u00e9\n".encode()
    assert names(tmp_path / "new" / "folder") == ["x.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG])
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_system_that_refuses_leaves_what_was_there(tmp_path: Path, monkeypatch: Any, number: int, call: str) -> None:
    out = tmp_path / "x.json"
    out.write_text("before")
    monkeypatch.setattr(os, call, refuse(number))
    with pytest.raises(OutputError, match=r"x\.json: cannot be written \(") as caught:
        outfile.write(out, "after")
    assert os.strerror(number) in str(caught.value)
    assert out.read_text() == "before"
    assert names(tmp_path) == ["x.json"]


def test_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill(stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        outfile.write_with(tmp_path / "x", fill)
    assert names(tmp_path) == []


def test_file_of_another_stays(tmp_path: Path) -> None:
    out = tmp_path / "x"
    out.write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        outfile.write(out, "new", replaces=lambda path: path.read_text() == "ours")
    with pytest.raises(OutputError, match="--export-csv"):
        outfile.check_free(out, "--export-csv")
    assert out.read_text() == "precious"
    out.write_text("ours")
    outfile.write(out, "new", replaces=lambda path: path.read_text() == "ours")
    assert out.read_text() == "new"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_file_that_came_to_be_meanwhile_stays(tmp_path: Path, monkeypatch: Any, links: bool) -> None:
    """Between the look and the rename another process writes the file."""
    out = tmp_path / "x"
    fsync = os.fsync

    def meanwhile(handle: int) -> None:
        out.write_text("another's")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    with pytest.raises(OutputError):
        outfile.write(out, "ours", replaces=lambda path: False)
    assert out.read_text() == "another's"
    assert names(tmp_path) == ["x"]


def test_file_system_without_links(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    outfile.write(tmp_path / "x", "new", replaces=lambda path: False)
    assert (tmp_path / "x").read_text() == "new"


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "x").symlink_to("there/x")
    outfile.write(tmp_path / "x", "new")
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "there" / "x").read_text() == "new"


def folder(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("make", [folder, fifo, device])
def test_what_is_no_file_is_never_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    out = tmp_path / "x"
    make(out)
    for action in (
        lambda: outfile.write(out, "new"),
        lambda: outfile.check_free(out, "--out"),
        lambda: outfile.Lock(out).take(),
    ):
        with pytest.raises(OutputError, match=r"is a (folder|FIFO|device)"):
            action()


@pytest.mark.parametrize("path", ["file/x", "x\0y", "n" * 300], ids=["below a file", "NUL", "long"])
def test_place_that_cannot_be(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        outfile.write(tmp_path / path, "new")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("spelt", ["x", "./x", "folder/../x", "link", "hard"])
def test_two_options_are_two_files(tmp_path: Path, monkeypatch: Any, spelt: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("x").write_text("")
    Path("link").symlink_to("x")
    Path("hard").hardlink_to("x")
    with pytest.raises(OutputError, match="--out and by --export-csv"):
        outfile.check_apart(out=Path("x"), export_csv=Path(spelt))
    outfile.check_apart(out=Path("x"), export_csv=Path("y"), export_markdown=None)


def test_second_writer_is_refused_until_the_first_is_through(tmp_path: Path) -> None:
    out = tmp_path / "x"
    (tmp_path / ".x.left.tmp").write_text("of a writer that was killed")
    with outfile.Lock(out):
        assert names(tmp_path) == [".x.lock"]
        with pytest.raises(OutputError, match="another moegauge"):
            outfile.Lock(out).take()
        (tmp_path / "link").symlink_to("x")
        with pytest.raises(OutputError, match="another moegauge"):
            outfile.Lock(tmp_path / "link").take()
    with outfile.Lock(out):
        pass
    assert names(tmp_path) == ["link"]


def test_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with outfile.Lock(tmp_path / "x"):
        outfile.write(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"]
