"""Read published decode speeds of open models (`estimator/data/throughput.csv`), one CSV row each.

A row that cannot be used is listed with its line, column and reason and left out; nothing missing is guessed. Two
things are read from words: the context (`tg128 @4096`, `8k in / 1k out`) and the bits of formats whose block layout
fixes them (bf16, Q8_0). A row that states no context is a short one.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moegauge.errors import ObservationError
from moegauge.estimator.packaged import packaged
from moegauge.limits import CELL_CHARACTERS, NUMBER_CHARACTERS, TABLE_COLUMNS, TABLE_LIMIT_BYTES, TABLE_ROWS
from moegauge.regular import read_file
from moegauge.text import shown
from moegauge.units import GB, GIB

COLUMNS = (
    "system",
    "device",
    "n_devices",
    "device_bandwidth_GBps",
    "model",
    "total_params",
    "active_params",
    "format",
    "bits_per_weight",
    "file_GiB",
    "batch",
    "context",
    "tokens_per_s",
    "evidence",
    "source",
    "note",
    "speed_of",
)
# Bits per weight that a format's name fixes, scales included; mixtures such as Q4_K_M must state theirs.
FIXED_BITS = {
    "f32": 32.0,
    "f16": 16.0,
    "fp16": 16.0,
    "bf16": 16.0,
    "fp8": 8.0,
    "int8": 8.0,
    "q8_0": 8.5,  # 32 int8 and one float16
    "q4_0": 4.5,  # 32 int4 and one float16
    "nvfp4": 4.5,  # 16 e2m1 and one e4m3
}
MOST_CONTEXT = 100_000_000  # tokens
SHORT_CONTEXT = 128  # tokens, where a row states none
# Mean time per output token holds other requests' prefill; this far from the median gap between tokens it says nothing.
MOST_PREFILL = 3.0
# Plausible ranges; outside them a unit has slipped.
RANGES = {
    "tokens_per_s": (1e-3, 1e5),
    "device_bandwidth_GBps": (1.0, 1e6),
    "active_params": (1e6, 1e14),
    "total_params": (1e6, 1e14),
    "bits_per_weight": (0.5, 64.0),
    "file_GiB": (1e-3, 1e6),
    "n_devices": (1, 10_000),
    "batch": (1, 1e6),
    "mean_tpot_ms": (1e-3, 1e6),
    "median_itl_ms": (1e-3, 1e6),
}
# Words of a file's name that say how it is packed or tuned, not which model it is.
_PACKAGING = frozenset(
    "gguf awq gptq mlx qat it instruct chat hf fp8 nvfp4 mxfp4 bf16 int4 int8 4bit 8bit".split()  # noqa: SIM905
)
_SPECULATIVE = re.compile(r"\+ *(mtp|eagle|draft|medusa)|speculat|eagle|lookahead|draft model", re.IGNORECASE)
_PLAIN = re.compile(r"(speculat\w*( \w+)? (flags? )?(off|disabled)|(without|no) (mtp|speculat\w+))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured decode speed of one stream.

    Attributes:
        line: line of the file.
        system, device: what ran it; together with nothing else they are its group.
        devices: how many.
        bandwidth: datasheet bandwidth of one device, bytes/s.
        model: name as given.
        total, active: parameters.
        format: weight format as given.
        bits: bits per weight, scales included.
        context: tokens of context, middle of the run.
        tokens_per_s: of one stream.
        source: where it was published.
        unverified: true when its evidence column says so.
        pipelined: true when its note says that layers were split over the devices, whose bandwidths do not add up.
        batch: streams decoded together; a measured concurrency may be a fraction.
    """

    line: int
    system: str
    device: str
    devices: int
    bandwidth: float
    model: str
    total: float
    active: float
    format: str
    bits: float
    context: float
    tokens_per_s: float
    source: str = ""
    unverified: bool = False
    pipelined: bool = False
    batch: float = 1.0

    @property
    def seconds(self) -> float:
        """Seconds per token of one stream, which is one step."""
        return 1.0 / self.tokens_per_s

    @property
    def bytes_per_token(self) -> float:
        """Active parameters times bits: the bytes the one-term formula reckons with."""
        return self.active * self.bits / 8

    @property
    def moe(self) -> bool:
        """True when a token uses clearly fewer parameters than the model has."""
        return self.total > 1.05 * self.active

    @property
    def key(self) -> str:
        """The model's name without owner, case, packaging and punctuation: two files of one model share it."""
        name = re.sub(r"\(.*?\)", "", self.model.lower()).rsplit("/", 1)[-1]
        words = [w for w in re.split(r"[^a-z0-9.]+", name) if w and w not in _PACKAGING]
        return "-".join(words) or name

    @property
    def group(self) -> tuple[str, str]:
        """System and device."""
        return self.system, self.device


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row left out, and why."""

    line: int
    model: str
    reason: str


class _UnusableError(Exception):
    """Why a row cannot be used: column and reason."""


def read(path: Path | None = None) -> tuple[list[Reading], list[Skipped]]:
    """Readings of a CSV file; the packaged ones without a path.

    Raises:
        ObservationError: the file cannot be read, is no CSV of these columns, or has no usable row.
    """
    if path is None:
        return _read(packaged("throughput.csv"), "packaged throughput.csv")
    return _read(text_of(path), str(path))


def read_packaged(name: str) -> list[Reading]:
    """Readings of a file in `estimator/data`."""
    return _read(packaged(name), f"packaged {name}")[0]


def _read(text: str, where: str) -> tuple[list[Reading], list[Skipped]]:
    rows, skipped = [], []
    for line, row in table(text, COLUMNS[:14], where):
        try:
            rows.append(_reading(line, row))
        except _UnusableError as error:
            skipped.append(Skipped(line, row.get("model", ""), str(error)))
    if not rows:
        first = f" Line {skipped[0].line}: {skipped[0].reason}." if skipped else ""
        raise ObservationError(f"{where}: no usable row.{first}", advice="See docs/estimating.md for the columns.")
    return rows, skipped


def text_of(path: Path) -> str:
    """UTF-8 text of a file of at most 16 MB.

    Raises:
        ObservationError: absent, no file, unreadable, too large or not UTF-8.
    """
    try:
        return read_file(path, TABLE_LIMIT_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ObservationError(f"{path}: cannot be read ({reason}).", advice="Give a UTF-8 CSV file.") from None


def table(text: str, columns: Iterable[str], where: str) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV text with the line each starts on, cells stripped.

    Raises:
        ObservationError: a column is missing or stands twice, a row has more cells than the header, or there is more
            of anything than `moegauge.limits` lets a table have.
    """
    reader = csv.reader(io.StringIO(text))
    names: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for cells in reader:
            line = reader.line_num
            if len(cells) > TABLE_COLUMNS or max(map(len, cells), default=0) > CELL_CHARACTERS:
                limits = f"{TABLE_COLUMNS} cells, {CELL_CHARACTERS:,} characters in one"
                raise ObservationError(f"{where}: line {line} holds more than {limits}.")
            if not names:
                names = [cell.strip() for cell in cells]
                _check_header(names, list(columns), where)
            elif len(cells) > len(names):
                raise ObservationError(f"{where}: line {line} has more cells than the header.")
            elif cells:
                stripped = [cell.strip() for cell in cells] + [""] * (len(names) - len(cells))
                rows.append((line, dict(zip(names, stripped, strict=True))))
            if len(rows) > TABLE_ROWS:
                advice = "Split it by system and device."
                raise ObservationError(f"{where}: more than {TABLE_ROWS:,} rows.", advice=advice)
    except csv.Error as error:
        raise ObservationError(f"{where}: line {reader.line_num}: {error}.") from None
    if not names:
        _check_header(names, list(columns), where)
    return rows


def _check_header(names: list[str], columns: list[str], where: str) -> None:
    missing = [c for c in columns if c not in names]
    if missing:
        raise ObservationError(f"{where}: line 1 has no column '{missing[0]}'.", advice=f"Needs: {', '.join(columns)}.")
    if len(set(names)) != len(names):
        raise ObservationError(f"{where}: line 1 names a column twice.")


def number(row: dict[str, str], column: str, *, required: bool = True) -> float | None:
    """A cell as a number within `RANGES`; None when it is empty and not required."""
    text = row.get(column, "")
    if not text:
        if required:
            raise _UnusableError(f"{column} is empty")
        return None
    if len(text) > NUMBER_CHARACTERS:
        raise _UnusableError(f"{column} has {len(text):,} characters, more than a number has")
    try:
        value = float(text)
    except ValueError:
        raise _UnusableError(f"{column} is '{text}', not a number") from None
    low, high = RANGES[column]
    if not (math.isfinite(value) and low <= value <= high):
        raise _UnusableError(f"{column} is {text}, not between {low:g} and {high:g}")
    return value


def _reading(line: int, row: dict[str, str]) -> Reading:
    for column in ("system", "device", "model"):
        if not row[column]:
            raise _UnusableError(f"{column} is empty")
    batch = _must(row, "batch")
    speed = _must(row, "tokens_per_s") / _streams(row, batch)
    active = _must(row, "active_params")
    total = _must(row, "total_params")
    # Published totals of dense models are sometimes rounded: 0.1 % is no contradiction.
    if active > total * 1.001:
        raise _UnusableError(f"active_params {active:.0f} is more than total_params {total:.0f}")
    devices = _must(row, "n_devices")
    bandwidth = _must(row, "device_bandwidth_GBps")
    words = f"{row['system']} {row['format']} {row.get('note', '')}"
    if _SPECULATIVE.search(_PLAIN.sub("", words)):
        raise _UnusableError("speculative decoding: tokens per step are unknown")
    if row["evidence"].lower().startswith("vendor"):
        raise _UnusableError("evidence is a vendor's claim, not a measurement")
    gaps = [number(row, column, required=False) for column in ("mean_tpot_ms", "median_itl_ms")]
    if gaps[0] and gaps[1] and not 1 / MOST_PREFILL <= gaps[0] / gaps[1] <= MOST_PREFILL:
        raise _UnusableError(f"mean_tpot_ms and median_itl_ms differ by more than x{MOST_PREFILL:g}")
    return Reading(
        line,
        row["system"],
        row["device"],
        int(devices),
        bandwidth * GB,
        row["model"],
        total,
        active,
        row["format"],
        _bits(row, total),
        _checked_context(row["context"]),
        speed,
        row.get("source", ""),
        "unverified" in row["evidence"].lower(),
        "layers split" in row.get("note", "").lower(),
        batch,
    )


def _streams(row: dict[str, str], batch: float) -> float:
    """By what a row's speed is divided to be that of one stream."""
    of = row.get("speed_of", "").lower()
    if of not in ("", "stream", "all"):
        raise _UnusableError(f"speed_of is '{of}', neither stream nor all")
    if batch != 1 and not of:
        raise _UnusableError(f"batch is {batch:g} and speed_of does not say whether the speed is of one stream or all")
    return batch if of == "all" else 1.0


def _must(row: dict[str, str], column: str) -> float:
    value = number(row, column)
    assert value is not None
    return value


def _bits(row: dict[str, str], total: float) -> float:
    stated = number(row, "bits_per_weight", required=False)
    if stated is not None:
        return stated
    size = number(row, "file_GiB", required=False)
    if size is not None:
        return size * GIB * 8 / total
    fixed = FIXED_BITS.get(row["format"].lower())
    if fixed is None:
        raise _UnusableError(
            f"bits_per_weight and file_GiB are empty and format '{row['format']}' does not fix the bits"
        )
    return fixed


def _tokens(text: str) -> float:
    return float(text[:-1]) * 1024 if text.endswith(("k", "K")) else float(text)


def _checked_context(text: str) -> float:
    tokens = _context(text)
    if tokens > MOST_CONTEXT:
        raise _UnusableError(f"context is '{shown(text)}', more than {MOST_CONTEXT:,} tokens")
    return tokens


def _context(text: str) -> float:
    """Tokens in the cache in the middle of the run, from the words a benchmark prints."""
    size = r"(\d+(?:\.\d+)?[kK]?)"
    generated = re.search(r"\btg ?" + size, text)
    depth = re.search(r"[@d] ?" + size + r"$", text)
    if depth:
        return _tokens(depth[1]) + (_tokens(generated[1]) / 2 if generated else 0)
    if generated:
        return _tokens(generated[1]) / 2
    both = re.search(size + r" in / " + size + r" out", text)
    if both:
        return _tokens(both[1]) + _tokens(both[2]) / 2
    prompt = re.search(r"(?:prompt|pp|PP) ?" + size, text)
    return _tokens(prompt[1]) if prompt else SHORT_CONTEXT
