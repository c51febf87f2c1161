"""Tables of the commands: nothing is cut, wrapped or interpreted, and columns line up."""

from __future__ import annotations

import pytest

from moegauge.commands._output import print_table


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, **options: bool) -> list[str]:
    print_table(*arguments, **options)  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()


def test_words_are_left_and_numbers_right_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, ("model", "GB"), [("a", "1.25"), ("longer", "10.50")])
    assert lines == ["model      GB", "a        1.25", "longer  10.50"]


def test_a_last_column_of_words_is_left_aligned_and_leaves_no_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, ("model", "GB", "why"), [("a", "1", "short"), ("b", "10", "")], note=True)
    assert lines == ["model  GB  why", "a       1  short", "b      10"]


@pytest.mark.parametrize("columns", ["20", "80"])
def test_a_long_cell_is_neither_cut_nor_wrapped(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    name = "model-" * 60
    assert printed(capsys, ("model", "n"), [(name, "1")])[1] == f"{name}  1"


def test_a_strangers_name_is_text_and_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    (_, line) = printed(capsys, ("model", "n"), [("[red]x[/red] :boom: \x1b[31m\n", "1")])
    assert line == "[red]x[/red] :boom: \\x1b[31m\\n  1"
