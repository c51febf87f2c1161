"""Errors of the whole kit, one class each; a message names the file, tensor or field and the next step.

Rooms add their own classes here or subclass these beside their code; the CLI catches `MoegaugeError` alone and
prints it as one line. `exit_code` is 1 (the work failed) or 2 (the request was not one we know).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoegaugeError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        message: what is wrong, naming the file, tensor or field.
        advice: the next step, printed after the message; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class UsageError(MoegaugeError):
    """The request itself is wrong: an unknown name, a value out of range."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is in no table: a format, a model, a device, a suite."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names[:20])}{more}."
        super().__init__(f"unknown {kind} '{name}'.", advice=hint)
        self.kind = kind
        self.name = name


class CheckpointError(MoegaugeError):
    """A checkpoint that cannot be counted: header, index, folder or Hub."""


class ShapeError(MoegaugeError):
    """A ModelShape that contradicts itself or the config it came from."""


class RecordError(MoegaugeError):
    """A measurement record that cannot be read, written or combined."""


class OutputError(RecordError):
    """A file that cannot be written, or must not be: another's work, another's turn, no space, no permission."""


class DeviceError(MoegaugeError):
    """A device that is absent, too small, or stopped answering."""


class ProgramError(DeviceError):
    """A program of a decode step that would reach outside its registers or its arena."""


class ColdError(DeviceError):
    """Too few bytes to be timed from memory: they would come from a cache."""


class MissingExtraError(MoegaugeError):
    """A command that needs an optional dependency which is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the '{extra}' extra.", advice=f"Run: pip install 'moegauge[{extra}]'")


class NumericsError(MoegaugeError):
    """A kernel whose answer is outside its stated error bound: it has no time."""


class ObservationError(MoegaugeError):
    """An observation file (tokens/s of served or measured models) with a row that cannot be used."""
