"""Read the header of a GGUF file (llama.cpp): metadata and tensor infos, strictly, through bounded reads.

Not by the `gguf` package's reader, for three reasons: it maps a whole local file, so it reads nothing on the Hub; it
makes arrays of every token of the vocabulary; and counts a stranger writes (2^60 elements) keep it busy without end.
The tests hold what is read here against that package's writer and reader.

Source of the format: `docs/gguf.md` of ggml (versions 2 and 3), and the checks of `gguf_init_from_file` in llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from moegauge.counting import errors
from moegauge.counting.headers.ggml import GGML_TYPES
from moegauge.limits import GGUF_ALIGNMENT, GGUF_DIMENSIONS, GGUF_FIELDS, GGUF_TENSORS, HEADER_LIMIT_BYTES
from moegauge.text import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the data, where `general.alignment` does not say
LONGEST_STRING = 10_000  # kept, in bytes; a chat template is longer and of no use here
LONGEST_ARRAY = 10_000  # elements kept: values by layer, never a vocabulary
LONGEST_NAME = 4096
FIRST_READ_BYTES = 1 << 20
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
ADVICE = "Download the file again, or ask whoever made it for a new one."


@dataclass(frozen=True, slots=True)
class Omitted:
    """An array or string that is too long to be of use: only its length is kept."""

    length: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` is outermost first (ggml writes it innermost first), `type` a key of `GGML_TYPES`, `offset`
    bytes after the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        row = GGML_TYPES[self.type]
        return prod(self.shape) // row.weights * row.bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata by key, tensors in file order, the byte at which data begins, and what was accepted but worth a line."""

    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    data_start: int
    warnings: list[str]


class _Reader:
    """Goes forward through a file by `read(offset, size)`, in growing steps."""

    def __init__(self, read: Callable[[int, int], bytes], file: str, size: int) -> None:
        self.read, self.file, self.size = read, file, size
        self.data = b""
        self.start = 0  # of `data` in the file
        self.at = 0  # in the file
        self.step = FIRST_READ_BYTES

    def error(self, problem: str, tensor: str | None = None) -> errors.BadEntryError:
        return errors.BadEntryError(problem, file=self.file, tensor=tensor, byte=self.at, advice=ADVICE)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        begin = self.at - self.start
        if begin + count > len(self.data):
            self._fill(count)
            begin = self.at - self.start
        self.at += count
        return self.data[begin : begin + count]

    def skip(self, count: int) -> None:
        self._check(count)
        self.at += count

    def _check(self, count: int) -> None:
        if self.at + count > min(self.size, HEADER_LIMIT_BYTES):
            if self.at + count > self.size:
                problem = f"the header goes on for {count:,} bytes at {self.at:,}, the file ends at {self.size:,}."
                raise errors.TruncatedError(problem, file=self.file)
            problem = f"the header is longer than {HEADER_LIMIT_BYTES:,} bytes."
            raise errors.HeaderTooLargeError(problem, file=self.file)

    def _fill(self, count: int) -> None:
        self._check(count)
        held = self.data[self.at - self.start :] if self.at < self.start + len(self.data) else b""
        begin = self.at + len(held)
        wanted = max(count - len(held), self.step)
        self.step = min(2 * self.step, 8 << 20)
        piece = self.read(begin, min(wanted, self.size - begin))
        self.data, self.start = held + piece, self.at
        if len(self.data) < count:
            raise errors.FileChangedError("changed while it was read.", file=self.file)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, limit: int) -> str | Omitted:
        length = self.number("<Q")
        if length > limit:
            self.skip(length)
            return Omitted(length)
        raw = self.take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error("a string is not UTF-8.") from None


def read_header(read: Callable[[int, int], bytes], *, file: str, file_size: int) -> GgufHeader:
    """The header of one GGUF file.

    Args:
        read: (offset, size) -> that many bytes of the file.
        file: its name, for messages.
        file_size: bytes of the whole file.

    Raises:
        HeaderError: it is no GGUF of a version known here, or contradicts itself; tensors must follow one another as
            llama.cpp writes and demands them.
    """
    reader = _Reader(read, file, file_size)
    if file_size < 24 or reader.take(4) != MAGIC:
        raise errors.NotSafetensorsError("does not begin as a GGUF file does.", file=file, advice=ADVICE)
    version = reader.number("<I")
    if version not in VERSIONS:
        kind = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
        advice = "Convert it with a current llama.cpp."
        raise errors.BadEntryError(f"is a GGUF file {kind}; versions 2 and 3 are read.", file=file, advice=advice)
    tensors, fields = reader.number("<Q"), reader.number("<Q")
    if tensors > GGUF_TENSORS or fields > GGUF_FIELDS:
        problem = (
            f"claims {tensors:,} tensors and {fields:,} fields; {GGUF_TENSORS:,} and {GGUF_FIELDS:,} are the most."
        )
        raise errors.HeaderTooLargeError(problem, file=file)
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        key = reader.text(LONGEST_NAME)
        if not isinstance(key, str):
            raise reader.error(f"a field's name has {key.length:,} bytes.")
        if key in metadata:
            raise errors.DuplicateKeyError(f"the field '{shown(key)}' stands twice.", file=file)
        metadata[key] = _value(reader, reader.number("<I"))
    infos = [_info(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= GGUF_ALIGNMENT:
        raise reader.error(f"general.alignment is {shown(alignment)}.")
    start = _padded(reader.at, alignment)
    rest = _check_data(infos, alignment, file=file, left=file_size - start)
    warnings = [f"{shown(file)}: {rest:,} bytes after its last tensor are not counted."] if rest > 0 else []
    return GgufHeader(metadata, infos, start, warnings)


def _value(reader: _Reader, kind: int) -> Any:
    if kind in _SCALARS:
        return reader.number(_SCALARS[kind])
    if kind == _STRING:
        return reader.text(LONGEST_STRING)
    if kind != _ARRAY:
        raise reader.error(f"a field has a type {kind}, which GGUF has not.")
    inner, length = reader.number("<I"), reader.number("<Q")
    if inner in _SCALARS:
        size = struct.calcsize(_SCALARS[inner])
        if length > LONGEST_ARRAY:
            reader.skip(length * size)
            return Omitted(length)
        return list(struct.unpack(f"<{length}{_SCALARS[inner][1]}", reader.take(length * size)))
    if inner != _STRING:  # llama.cpp refuses arrays of arrays too
        raise reader.error(f"an array holds type {inner}; numbers and strings are read.")
    if length > HEADER_LIMIT_BYTES // 8:
        raise reader.error(f"an array claims {length:,} strings.")
    if length <= LONGEST_ARRAY:
        return [reader.text(LONGEST_STRING) for _ in range(length)]
    for _ in range(length):
        reader.skip(reader.number("<Q"))
    return Omitted(length)


def _info(reader: _Reader) -> TensorInfo:
    name = reader.text(LONGEST_NAME)
    if not isinstance(name, str):
        raise reader.error(f"a tensor's name has {name.length:,} bytes.")
    dimensions = reader.number("<I")
    if dimensions > GGUF_DIMENSIONS:
        problem = f"has {dimensions} dimensions; ggml has {GGUF_DIMENSIONS} at most."
        raise errors.BadShapeError(problem, file=reader.file, tensor=name)
    shape = tuple(reversed([reader.number("<Q") for _ in range(dimensions)]))
    kind, offset = reader.number("<I"), reader.number("<Q")
    if kind not in GGML_TYPES:
        problem = f"has ggml type {kind}, which is not known here."
        raise errors.UnknownDtypeError(problem, file=reader.file, tensor=name, advice="Add its row: headers/ggml.py")
    if prod(shape) >= 2**63:
        raise errors.ShapeOverflowError("has more elements than 63 bits count.", file=reader.file, tensor=name)
    if (shape[-1] if shape else 1) % GGML_TYPES[kind].weights:
        problem = f"has rows of {shape[-1]:,}, no whole number of blocks of {GGML_TYPES[kind].weights}."
        raise errors.BadShapeError(problem, file=reader.file, tensor=name)
    return TensorInfo(name, shape, kind, offset)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _check_data(infos: list[TensorInfo], alignment: int, *, file: str, left: int) -> int:
    """Bytes left after the data: tensors fill it one after another, each padded to the alignment, inside the file."""
    expected = end = 0
    seen: set[str] = set()
    for info in infos:
        if info.name in seen:
            raise errors.DuplicateKeyError("stands twice.", file=file, tensor=info.name)
        seen.add(info.name)
        if info.offset != expected:
            problem = f"begins at byte {info.offset:,} of the data, the one before it ends at {expected:,}."
            raise errors.BadOffsetsError(problem, file=file, tensor=info.name)
        end = info.offset + info.bytes
        expected = _padded(end, alignment)
    if end > left:
        problem = f"its tensors take {end:,} bytes, the file has {max(0, left):,} for them."
        raise errors.TruncatedError(problem, file=file)
    return left - expected
