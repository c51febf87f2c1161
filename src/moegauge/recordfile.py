"""Write a record to disk while a run goes on: atomically after every point, never over another run's file.

Each write goes to a temporary file beside the target, is synced and then renamed over it, so a crash, a full disk or
an interrupt leaves the file as it was after the last point.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from moegauge import outfile
from moegauge.errors import RecordError
from moegauge.record import Case, Record, load, to_json

# Arguments that say where output goes or how long this part of a run may take, not what is measured: a resumed run may
# differ in them.
_OUTPUT_FLAGS = {"--json"}
_OUTPUT_OPTIONS = ("--out", "--budget", "--continue", "--export-csv", "--export-markdown")


def same_run(argv: list[str]) -> list[str]:
    """`argv` without output and budget options: equal for a run and its resumption."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in _OUTPUT_OPTIONS:
            skip = True
        elif word not in _OUTPUT_FLAGS and not word.startswith(tuple(f"{name}=" for name in _OUTPUT_OPTIONS)):
            kept.append(word)
    return kept


class RecordFile:
    """A record that is on disk after every point. Use as a context manager: it holds a lock against a second run."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record
        self._lock = outfile.Lock(path)

    @classmethod
    def open(cls, path: Path, draft: Record) -> RecordFile:
        """Start `path` with the points of `draft`, or take up the run that wrote it.

        Raises:
            RecordError: the file exists and is of another run (other arguments, machine or commit), another process
                is writing it, or it cannot be written.
        """
        self = cls(path, draft)
        self._lock.take()
        try:
            if path.exists():
                self.record = _resumable(path, draft)
            else:
                self.save()
        except BaseException:
            self.close()
            raise
        return self

    def add(self, case: Case) -> None:
        """Append a point and write the file."""
        self.record.cases.append(case)
        self.save()

    def save(self) -> None:
        """Write the record as it is now."""
        outfile.write(self.path, to_json(self.record))

    def close(self) -> None:
        """Let another run have the file."""
        self._lock.release()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _versions(record: Record) -> list[str]:
    """Software a record was measured with; nothing where it does not say."""
    return [f"{name} {version}" for name, version in sorted(record.software.items()) if version]


def _resumable(path: Path, draft: Record) -> Record:
    """The record at `path`, if `draft` is the same run.

    Raises:
        RecordError: it is another run, named by what differs.
    """
    found = load(path)
    differences = (
        ("arguments", same_run(found.argv), same_run(draft.argv)),
        ("machine", found.machine_key, draft.machine_key),
        ("software", _versions(found), _versions(draft)),
        ("commit", found.project.commit or found.project.version, draft.project.commit or draft.project.version),
    )
    for name, old, new in differences:
        if old != new:
            shown = tuple(" ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in (old, new))
            raise RecordError(
                f"{path}: exists and is of another run ({name} '{shown[0]}', now '{shown[1]}'); it is left as it is.",
                advice="Give another --out, or repeat that run's command to resume it.",
            )
    return found


def carry(found: Record, draft: Record) -> str:
    """Put into `draft`, a run that has not begun, what an earlier record measured that still holds: the roof and the
    floors where the machine and the software are the same; where the commit is too, everything.

    Returns:
        what was carried over, in a sentence.
    """
    differs = [
        name
        for name, old, new in (
            ("machine", found.machine_key, draft.machine_key),
            ("software", _versions(found), _versions(draft)),
            ("commit", found.project.commit, draft.project.commit),
        )
        if old != new or old is None
    ]
    if {"machine", "software"} & set(differs):
        return f"nothing is carried over: another {' and another '.join(differs)}"
    draft.roof, draft.floors = found.roof, found.floors
    if differs or found.project.dirty or draft.project.dirty:
        return "roof and floors are carried over; the rest was measured by another commit"
    draft.cases, draft.verdicts, draft.left_out, draft.skipped = (
        found.cases, found.verdicts, found.left_out, found.skipped
    )  # fmt: skip
    return f"roof, floors, verdicts and {len(found.cases)} points are carried over"
