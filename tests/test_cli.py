"""The front door: help, versions, unknown names, exit codes, one line for every error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moegauge import cli
from moegauge.errors import MoegaugeError, UnknownNameError


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "moegauge", *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_help_names_every_command() -> None:
    out = run("-h").stdout
    for name in cli.COMMANDS:
        assert f"  {name} " in out


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"Usage: moegauge {name}")


def test_version() -> None:
    assert run("--version").stdout.startswith("moegauge, version ")


def test_unknown_command_suggests_the_nearest() -> None:
    result = run("cuont")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "moegauge: unknown command 'cuont'. Did you mean 'count'?\n"


def test_unknown_option_is_bad_usage() -> None:
    result = run("models", "--nope")
    assert result.returncode == 2
    assert "--nope" in result.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" not in run("models", "kimi-k9").stderr
    assert "Traceback" in run("models", "kimi-k9", MOEGAUGE_DEBUG="1").stderr


def test_errors_end_with_the_next_step() -> None:
    error = UnknownNameError("format", "mxpf4", ["mxfp4", "bf16"])
    assert str(error) == "unknown format 'mxpf4'. Did you mean 'mxfp4'?"
    assert error.exit_code == 2
    assert str(UnknownNameError("format", "zzz", ["b", "a"])) == "unknown format 'zzz'. Known: a, b."
    assert MoegaugeError("m").exit_code == 1


def test_unexpected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(cli.group, "main", broken)
    monkeypatch.delenv("MOEGAUGE_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "RuntimeError: boom" in error


def test_completion_script() -> None:
    out = run(_MOEGAUGE_COMPLETE="bash_source").stdout
    assert "_moegauge_completion" in out
