"""One safetensors header, validated. `parse_header` decodes the usual header with a typed decoder and checks it in
bulk; whatever that cannot vouch for goes to `moegauge.counting.strict`, which states the rules and names the fault."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import numpy as np

from moegauge.counting import errors, magic

HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own limit (MAX_HEADER_SIZE)
HEADER_LIMIT_VALUES = 10_000_000  # commas and colons: about 900,000 tensors in one file; bounds memory near 1 GB
LENGTH_BYTES = 8
MAX_DIMENSIONS = 64

# Bits of one element, for every dtype of safetensors 0.8 (safetensors/src/tensor.rs, Dtype::bitsize).
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one shard, as parallel lists in the order of the header.

    Attributes:
        file: the shard's name in its folder or repo.
        names, dtypes: one string each per tensor.
        shapes: one tuple of dimensions per tensor; () is a scalar, which has one element.
        begins, ends: byte offsets of each tensor's data, relative to the first byte after the header.
        elements: stored elements of each tensor, the product of its shape.
        metadata: `__metadata__`, None when absent or null.
        header_bytes: the 8-byte length and the JSON after it.
        data_bytes: bytes of tensor data; the validated tensors fill it without hole or overlap.
        warnings: what was accepted but is worth a line, or could not be checked.
    """

    file: str
    names: list[str]
    dtypes: list[str]
    shapes: list[tuple[int, ...]]
    begins: list[int]
    ends: list[int]
    elements: list[int]
    metadata: dict[str, str] | None = None
    header_bytes: int = 0
    data_bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
        """(name, dtype, shape, stored bytes) of every tensor."""
        sizes = (end - begin for begin, end in zip(self.begins, self.ends, strict=True))
        return zip(self.names, self.dtypes, self.shapes, sizes, strict=True)


class _Entry(msgspec.Struct, gc=False):
    """One tensor as the typed decoder sees it. Every field has a default so that `__metadata__` decodes too."""

    dtype: Literal[tuple(DTYPE_BITS)] = ""  # type: ignore[valid-type]
    shape: tuple[int, ...] = (-1,)
    data_offsets: tuple[int, int] = (-1, -1)


class _Metadata(msgspec.Struct):
    values: dict[str, str] | None = msgspec.field(default=None, name="__metadata__")


_ENTRIES = msgspec.json.Decoder(dict[str, _Entry])
_METADATA = msgspec.json.Decoder(_Metadata)
_ENTRY_KEYS = 4  # a tensor's name, dtype, shape, data_offsets: one colon each


def header_length(prefix: bytes, *, file: str, file_size: int | None) -> int:
    """Bytes of the JSON header, from the first bytes of a file; nothing is allocated for what they claim.

    Args:
        prefix: the file's first bytes: 8 suffice, 64 let another file format be named.
        file: name for messages.
        file_size: bytes of the whole file, None when unknown.
    Raises:
        TooShortError, HeaderTooLargeError, TruncatedError, NotSafetensorsError.
    """
    if len(prefix) >= LENGTH_BYTES:
        length: int = struct.unpack_from("<Q", prefix)[0]
        if length <= HEADER_LIMIT_BYTES and (file_size is None or LENGTH_BYTES + length <= file_size):
            return length
    known = magic.identify(prefix)
    if known is not None:
        kind, advice = known
        error = errors.NotSafetensorsError(f"is {kind}.", file=file, advice=advice)
        error.kind = kind
        raise error
    if len(prefix) < LENGTH_BYTES:
        raise errors.TooShortError(f"{len(prefix)} bytes is too short for a safetensors file.", file=file)
    if length > HEADER_LIMIT_BYTES:
        problem = f"the header claims {length:,} bytes; the limit is {HEADER_LIMIT_BYTES:,}."
        raise errors.HeaderTooLargeError(problem, file=file, byte=0)
    if file_size == LENGTH_BYTES:
        raise errors.TooShortError("the file ends after its 8-byte length.", file=file)
    problem = f"the header claims {length:,} bytes, the whole file has {file_size:,}."
    raise errors.TruncatedError(problem, file=file, byte=0)


def parse_header(raw: bytes, *, file: str, file_size: int | None) -> Header:
    """Validate the header at the start of `raw`; every rule of safetensors 0.8 and a few of our own.

    Args:
        raw: the file from its first byte; must reach to the end of the header, may reach further.
        file: name for messages.
        file_size: bytes of the whole file. With None (a server that does not say) the size of the data is taken
            from the header, and `Header.warnings` says so.
    Raises:
        HeaderError: one subclass per way of being wrong, see `moegauge.counting.errors`.
    """
    length = header_length(raw[:64], file=file, file_size=file_size)
    if LENGTH_BYTES + length > len(raw):
        problem = f"the header claims {length:,} bytes, only {len(raw) - LENGTH_BYTES:,} are there."
        raise errors.TruncatedError(problem, file=file, byte=0)
    text = raw[LENGTH_BYTES : LENGTH_BYTES + length]
    data_bytes = None if file_size is None else file_size - LENGTH_BYTES - length
    header = parse_text(text, file=file, prefix=raw[:64], data_bytes=data_bytes)
    if file_size is None:
        header.warnings.append(f"{errors.shown(file)}: file size unknown, so its end was not checked.")
    return header


def parse_text(text: bytes, *, file: str, prefix: bytes = b"", data_bytes: int | None) -> Header:
    """Validate a header's JSON alone, as a server hands it out; `parse_header` without the 8-byte length.

    Args:
        text: the JSON; `prefix`: the file's first bytes if at hand, to name another file format.
        data_bytes: bytes of tensor data the file holds, None when unknown.
    Raises:
        HeaderError: as `parse_header`.
    """
    header = _plain_header(text, file, data_bytes)
    if header is None:
        from moegauge.counting import strict

        header = strict.read(text, file=file, prefix=prefix, data_bytes=data_bytes)
    if not header.names:
        header.warnings.append(f"{errors.shown(file)}: holds no tensors.")
    elif not text.isascii() or b"\\" in text:
        _warn_of_twins(header)
    return header


def _warn_of_twins(header: Header) -> None:
    """Names that look alike and differ in bytes (NFC and NFD) are two names; a reader may mix them up."""
    if len({unicodedata.normalize("NFC", name) for name in header.names}) < len(header):
        header.warnings.append(f"{errors.shown(header.file)}: tensor names that differ in Unicode form only.")


class _Products(dict[tuple[int, ...], int]):
    """shape -> elements; a shape that breaks a rule raises OverflowError, which sends the file to `strict`."""

    def __missing__(self, shape: tuple[int, ...]) -> int:
        product = 1
        for dimension in shape:
            product *= dimension
            if dimension < 0 or product > 2**56:
                raise OverflowError
        if len(shape) > MAX_DIMENSIONS:
            raise OverflowError
        self[shape] = product
        return product


def _plain_header(text: bytes, file: str, data_bytes: int | None) -> Header | None:
    """The header when it is beyond doubt, None when `strict` must decide.

    Duplicate keys are lost in decoding, so colons are counted: every key has one colon outside strings, so the total
    is exactly what the decoded keys need unless a key was dropped. Escapes would hide colons: a backslash is doubt.
    """
    octets = np.frombuffer(text, np.uint8)
    if b"\\" in text or b"-0" in text or _count(octets, b",:") > HEADER_LIMIT_VALUES:
        return None
    try:
        entries = _ENTRIES.decode(text)
        metadata = _METADATA.decode(text).values if b'"__metadata__"' in text else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    has_metadata = entries.pop("__metadata__", None) is not None
    names = list(entries)
    colons = _ENTRY_KEYS * len(names) + "".join(names).count(":")
    if has_metadata:
        pairs = metadata or {}
        colons += 1 + len(pairs) + "".join(pairs).count(":") + "".join(pairs.values()).count(":")
    if colons != _count(octets, b":"):
        return None
    header = _plain_tensors(names, list(entries.values()), file, data_bytes)
    return None if header is None else replace(header, metadata=metadata, header_bytes=LENGTH_BYTES + len(text))


def _plain_tensors(names: list[str], entries: list[_Entry], file: str, data_bytes: int | None) -> Header | None:
    """Shapes, sizes and offsets checked in bulk; None at the first doubt."""
    dtypes: list[str] = [entry.dtype for entry in entries]
    shapes = [entry.shape for entry in entries]
    begins = [entry.data_offsets[0] for entry in entries]
    ends = [entry.data_offsets[1] for entry in entries]
    products = _Products()
    try:
        elements = [products[shape] for shape in shapes]
        bits = np.array([DTYPE_BITS[dtype] for dtype in dtypes], np.int64) * np.array(elements, np.int64)
        first, last = np.array(begins, np.int64), np.array(ends, np.int64)
    except (OverflowError, KeyError):
        return None
    order = np.lexsort((last, first))
    first, last, bits = first[order], last[order], bits[order]
    total = int(last[-1]) if names else 0
    if (
        (data_bytes is not None and total != data_bytes)
        or (names and first[0] != 0)
        or np.any(first[1:] != last[:-1])
        or np.any(bits % 8)
        or np.any(last - first != bits // 8)
    ):
        return None
    interned = {shape: shape for shape in products}
    shapes = [interned[shape] for shape in shapes]
    return Header(file, names, dtypes, shapes, begins, ends, elements, data_bytes=total)


def _count(octets: np.ndarray[tuple[int], np.dtype[np.uint8]], wanted: bytes) -> int:
    return sum(int(np.count_nonzero(octets == byte)) for byte in wanted)
