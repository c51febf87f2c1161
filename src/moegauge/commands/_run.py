"""What `bench`, `bench peers` and `validate` share: a run's progress on a terminal, its tables, how to resume it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moegauge.commands._output import say, show_progress, warn
from moegauge.errors import DeviceError
from moegauge.record import Record

if TYPE_CHECKING:
    from moegauge.bench.run.session import Session, Tell


def tell() -> Tell:
    """A run's voice: progress on a terminal only, the rest on stderr."""
    from moegauge.bench.run.session import Tell

    return Tell(progress=show_progress, warn=warn, trace=lambda line: say(line, err=True))


@contextmanager
def resumable(session: Session, again: Sequence[str]) -> Iterator[None]:
    """Hold a session's record open; an interrupt says how to go on with it, by the words `again`."""
    try:
        with session:
            yield
    except KeyboardInterrupt:
        done, planned, out = len(session.record.cases), len(session.points), session.options.out
        if out is None:
            say(err=True)
            say(f"Stopped after {done} of {planned} points; nothing was stored (no --out).", err=True)
        else:
            command = shlex.join(["moegauge", *again])
            say(err=True)
            say(f"Stopped after {done} of {planned} points; {out} is valid. Resume: {command}", err=True)
        raise


def argv() -> list[str]:
    """The words behind `moegauge`, as they were typed."""
    return sys.argv[1:]


def take_exports(options: dict[str, Any]) -> tuple[Path | None, Path | None]:
    """(--export-csv, --export-markdown), taken out of the options of a measurement.

    Raises:
        OutputError: two outputs are one file, or a table would replace what is no earlier table.
    """
    from moegauge import outfile
    from moegauge.bench.report import tables

    csv, markdown = options.pop("export_csv"), options.pop("export_markdown")
    outfile.check_apart(out=options["out"], export_csv=csv, export_markdown=markdown)
    if csv:
        outfile.check_free(csv, "--export-csv", replaces=tables.is_csv)
    if markdown:
        outfile.check_free(markdown, "--export-markdown", replaces=tables.is_markdown)
    return csv, markdown


def export(record: Record, csv: Path | None, markdown: Path | None) -> None:
    """Write the tables asked for.

    Raises:
        RecordError: one cannot be written.
    """
    from moegauge import outfile
    from moegauge.bench.report import tables

    if csv:
        outfile.write(csv, tables.record_csv(record), replaces=tables.is_csv)
    if markdown:
        outfile.write(markdown, tables.markdown(record), replaces=tables.is_markdown)


def say_where(out: Path | None) -> None:
    """Where the record is, on stderr."""
    say(f"Record: {out}" if out else "Not stored: give --out FILE to keep the record.", err=True)


def raise_failures(session: Session) -> None:
    """Exit 1 when a point gave no time; each is named on stderr.

    Raises:
        DeviceError: at least one point failed.
    """
    failures, points = session.failures, session.points
    if not failures:
        return
    if len(failures) == 1 and len(points) == 1:
        raise failures[0].error
    for failure in failures:
        warn(f"{failure.point.label}: {failure.error}")
    raise DeviceError(
        f"{len(failures)} points gave no time."
        if session.stages  # where launch modes are compared, a point is taken several times
        else f"{len(failures)} of {len(points)} points gave no time.",
        advice="Run again to try these.",
    )
