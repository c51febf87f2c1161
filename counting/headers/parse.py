"""Parse and validate one safetensors header.

`parse_header` decodes the usual header with a typed decoder and checks it in bulk; whatever that cannot vouch for goes
to `moegauge.counting.headers.strict`, which states the rules and names the fault.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from dataclasses import replace
from itertools import chain
from typing import Literal

import msgspec
import numpy as np

from moegauge.counting import errors
from moegauge.counting.headers import file_kinds, strict
from moegauge.counting.headers.header import DTYPE_BITS, LENGTH_BYTES, U64_MAX, Header
from moegauge.limits import HEADER_LIMIT_BYTES, HEADER_LIMIT_VALUES, MAX_DIMENSIONS
from moegauge.text import shown

SAFE_BITS = 2**62  # sizes the fast reader handles in 64-bit arithmetic; larger ones are for `strict`


class _Entry(msgspec.Struct, gc=False):
    """One tensor as the typed decoder sees it. Every field has a default so that `__metadata__` decodes too."""

    dtype: Literal[tuple(DTYPE_BITS)] = ""  # type: ignore[valid-type]
    shape: tuple[int, ...] = (-1,)
    data_offsets: tuple[int, int] = (-1, -1)


class _Metadata(msgspec.Struct):
    values: dict[str, str] | None = msgspec.field(default=None, name="__metadata__")


_ENTRIES = msgspec.json.Decoder(dict[str, _Entry])
_METADATA = msgspec.json.Decoder(_Metadata)
_METADATA_FIRST = re.compile(rb'\s*\{\s*"__metadata__"\s*:\s*(\{[^{}]*\})')
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
    known = file_kinds.identify(prefix)
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
        header.warnings.append(f"{shown(file)}: file size unknown, so its end was not checked.")
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
        header = strict.read(text, file=file, prefix=prefix, data_bytes=data_bytes)
    if not header.names:
        header.warnings.append(f"{shown(file)}: holds no tensors.")
    elif not text.isascii() or b"\\" in text:
        _warn_of_twins(header)
    return header


def _warn_of_twins(header: Header) -> None:
    """Names that look alike and differ in bytes (NFC and NFD) are two names; a reader may mix them up."""
    if len({unicodedata.normalize("NFC", name) for name in header.names}) < len(header):
        header.warnings.append(f"{shown(header.file)}: tensor names that differ in Unicode form only.")


class _Sizes(dict[tuple[str, tuple[int, ...]], int]):
    """(dtype, shape) -> bytes; one that breaks a rule raises LookupError or OverflowError: `strict` will say which."""

    def __missing__(self, key: tuple[str, tuple[int, ...]]) -> int:
        dtype, shape = key
        bits = DTYPE_BITS[dtype]
        for dimension in shape:
            bits *= dimension
            if not 0 <= dimension <= U64_MAX or bits > SAFE_BITS:
                raise OverflowError
        if len(shape) > MAX_DIMENSIONS or bits % 8:
            raise OverflowError
        self[key] = bits // 8
        return bits // 8


def _plain_header(text: bytes, file: str, data_bytes: int | None) -> Header | None:
    """The header when it is beyond doubt, None when `strict` must decide.

    Duplicate keys are lost in decoding, so colons are counted: every key has one colon outside strings, so the total
    is exactly what the decoded keys need unless a key was dropped. Minus signs are counted likewise: one outside a
    name is a negative number or -0. Escapes would hide either, so a backslash is doubt.
    """
    octets = np.frombuffer(text, np.uint8)
    colons, commas, minuses = (int(np.count_nonzero(octets == ord(c))) for c in ":,-")
    if b"\\" in text or colons + commas > HEADER_LIMIT_VALUES:
        return None
    try:
        entries = _ENTRIES.decode(text)
        metadata = _metadata(text) if "__metadata__" in entries else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    strings = [""]
    if entries.pop("__metadata__", None) is not None:
        pairs = metadata or {}
        colons -= 1 + len(pairs)
        strings = [*pairs, *pairs.values()]
    names = list(entries)
    colons -= _ENTRY_KEYS * len(names)
    if colons or minuses:  # seldom: names hold neither
        joined = "".join(chain(names, strings))
        if colons != joined.count(":") or minuses != joined.count("-"):
            return None
    header = _plain_tensors(names, list(entries.values()), file, data_bytes)
    return None if header is None else replace(header, metadata=metadata, header_bytes=LENGTH_BYTES + len(text))


def _metadata(text: bytes) -> dict[str, str] | None:
    """`__metadata__`, from the start of the header, where writers put it, else by a second look at all of it."""
    match = _METADATA_FIRST.match(text)
    if match:
        try:
            return msgspec.json.decode(match[1], type=dict[str, str])
        except msgspec.MsgspecError:  # a brace in a string ended the match too soon
            pass
    return _METADATA.decode(text).values


def _plain_tensors(names: list[str], entries: list[_Entry], file: str, data_bytes: int | None) -> Header | None:
    """Shapes, sizes and offsets checked in bulk; None at the first doubt."""
    dtypes: list[str] = [entry.dtype for entry in entries]
    shapes = [entry.shape for entry in entries]
    offsets = [entry.data_offsets for entry in entries]
    try:
        sizes = np.fromiter(map(_Sizes().__getitem__, zip(dtypes, shapes, strict=True)), np.int64, len(names))
        bounds = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(names))
    except (OverflowError, LookupError):
        return None
    first, last = bounds[0::2], bounds[1::2]
    if np.any(first[1:] != last[:-1]):  # not in the order of their offsets
        order = np.lexsort((last, first))
        first, last, sizes = first[order], last[order], sizes[order]
    total = int(last[-1]) if names else 0
    if (
        (data_bytes is not None and total != data_bytes)
        or (names and first[0] != 0)
        or np.any(first[1:] != last[:-1])
        or np.any(last - first != sizes)
    ):
        return None
    return Header(file, names, dtypes, shapes, offsets, data_bytes=total)
