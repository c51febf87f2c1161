"""The rules of a valid safetensors header, one by one, each with its own error.

Slow and exact: it runs only for a header `moegauge.counting.headers.parse` could not vouch for, to find the fault or
to find that there is none.

Stricter than safetensors 0.8 in these ways, and in no other (tests/attacks/test_mutants.py):

- a key stands twice in one object that is read: a tensor, a field of one, a metadata key (safetensors keeps the last);
- a tensor's entry is a list of its three fields, or a dtype is an object of one null (serde reads both);
- a shape has more than 64 dimensions, or a header more than 10,000,000 commas and colons;
- a number in a field nobody reads is 1e308 or more, either way (safetensors refuses from about 1.8e308 on).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NoReturn, TypeGuard

from moegauge.counting import errors
from moegauge.counting.headers import file_kinds
from moegauge.counting.headers.header import DTYPE_BITS, LENGTH_BYTES, U64_MAX, Header
from moegauge.limits import HEADER_LIMIT_VALUES, HEADER_NESTING, HEADER_NUMBER, MAX_DIMENSIONS
from moegauge.text import shown

FIELDS = ("dtype", "shape", "data_offsets")
_METADATA = "__metadata__"


class KeyValues(list[tuple[str, Any]]):
    """A JSON object as its key-value pairs, repeated keys kept."""


class _Invalid:
    """A JSON number no field may hold: fraction, exponent, minus sign, or more digits than 2^64 has."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text[:40]


def _whole(text: str) -> int | _Invalid:
    # 2^64 - 1 has 20 digits; Python refuses to convert more than 4,300 of them.
    return int(text) if text[0] != "-" and len(text) <= 20 else _Invalid(text)


def _decoded(text: bytes, prefix: bytes, file: str) -> Any:
    """The JSON document with objects as `KeyValues`; RFC 8259 and nothing more."""
    try:
        string = text.decode("utf-8")
    except UnicodeDecodeError as error:
        _unreadable(prefix, file)
        byte = LENGTH_BYTES + error.start
        raise errors.NotUtf8Error("the header is not UTF-8.", file=file, byte=byte) from None
    values = text.count(b",") + text.count(b":")
    if values > HEADER_LIMIT_VALUES:
        problem = f"the header holds {values:,} values; the limit is {HEADER_LIMIT_VALUES:,}."
        raise errors.HeaderTooLargeError(problem, file=file)
    try:
        return json.loads(
            string, object_pairs_hook=KeyValues, parse_int=_whole, parse_float=_Invalid, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise errors.NestingError("the header nests deeper than any reader follows.", file=file) from None
    except json.JSONDecodeError as error:
        _unreadable(prefix, file)
        byte = LENGTH_BYTES + len(string[: error.pos].encode("utf-8"))
        raise errors.NotJsonError(f"the header is not JSON: {error.msg}.", file=file, byte=byte) from None
    except ValueError as error:
        raise errors.NotJsonError(f"the header is not JSON: {error}.", file=file) from None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON value")


def _unreadable(prefix: bytes, file: str) -> None:
    """Say what the file really is, when that is known: an HTML page or a pickle can claim a believable length."""
    known = file_kinds.identify(prefix)
    if known is not None:
        error = errors.NotSafetensorsError(f"is {known[0]}.", file=file, advice=known[1])
        error.kind = known[0]
        raise error


def read(text: bytes, *, file: str, prefix: bytes = b"", data_bytes: int | None) -> Header:
    """Read and validate the JSON of a header whose length has been checked already.

    Args:
        text: the header's JSON, without the 8-byte length.
        file: name for messages.
        prefix: the file's first bytes, to name another file format; empty when there are none.
        data_bytes: bytes after the header, None when unknown.
    Raises:
        HeaderError: the one subclass that names the fault.
    """
    document = _decoded(text, prefix, file)
    if not isinstance(document, KeyValues):
        raise errors.NotAnObjectError("the header's outermost value is not an object.", file=file)
    return validate(document, file=file, header_bytes=LENGTH_BYTES + len(text), data_bytes=data_bytes)


def validate(document: KeyValues, *, file: str, header_bytes: int, data_bytes: int | None) -> Header:
    """Check every promise of a header already decoded (`KeyValues` for each object), and keep it.

    Raises:
        HeaderError: the one subclass that names the fault.
    """
    header = Header(file, [], [], [], [])
    seen: set[str] = set()
    metadata: dict[str, str] | None = None
    for name, entry in document:
        if name in seen:
            problem = "stands twice in the header; two readers would see two different files."
            raise errors.DuplicateKeyError(problem, file=file, tensor=name)
        seen.add(name)
        _check_text(name, file)
        if name == _METADATA:
            metadata = _checked_metadata(entry, file)
        else:
            _append(header, name, entry)
    total = _checked_layout(header, header_bytes, data_bytes)
    return replace(header, metadata=metadata, header_bytes=header_bytes, data_bytes=total)


def _check_text(text: str, file: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        problem = f"the header holds a lone surrogate in '{shown(text)}'."
        raise errors.NotUtf8Error(problem, file=file) from None


def _check_unread(key: str, value: Any, file: str, tensor: str) -> None:
    """A field nobody reads must still be JSON a strict reader takes: no lone surrogate, no number out of range, no
    deep nesting."""
    _check_text(key, file)
    level = [value]
    for _ in range(HEADER_NESTING + 1):
        for inner in level:
            if isinstance(inner, str):
                _check_text(inner, file)
            elif isinstance(inner, _Invalid) and not abs(float(inner.text)) < HEADER_NUMBER:
                raise errors.NotJsonError(f"holds the number {inner!r}, out of range.", file=file, tensor=tensor)
        nested = [inner for inner in level if isinstance(inner, list)]
        if not nested:
            return
        level = [inner for outer in nested for inner in _parts(outer)]
    raise errors.NestingError(f"has a field nested deeper than {HEADER_NESTING} levels.", file=file, tensor=tensor)


def _parts(value: list[Any]) -> list[Any]:
    return [part for pair in value for part in pair] if isinstance(value, KeyValues) else value


def _checked_metadata(value: Any, file: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, KeyValues):
        raise errors.BadMetadataError("__metadata__ is not an object.", file=file)
    metadata: dict[str, str] = {}
    for key, text in value:
        if not isinstance(text, str):
            raise errors.BadMetadataError(f"__metadata__['{shown(key)}'] is not a string.", file=file)
        if key in metadata:
            raise errors.DuplicateKeyError(f"'{shown(key)}' stands twice in __metadata__.", file=file)
        _check_text(key, file)
        _check_text(text, file)
        metadata[key] = text
    return metadata


def _is_whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= U64_MAX


def _append(header: Header, name: str, entry: Any) -> None:
    """Check one tensor by itself and add it."""
    file = header.file
    if not isinstance(entry, KeyValues):
        raise errors.BadEntryError("has an entry that is not an object.", file=file, tensor=name)
    fields: dict[str, Any] = {}
    for key, value in entry:
        if key in fields:
            raise errors.DuplicateKeyError(f"has the field '{shown(key)}' twice.", file=file, tensor=name)
        fields[key] = value
    missing = [key for key in FIELDS if key not in fields]
    if missing:
        raise errors.BadEntryError(f"has no {missing[0]}.", file=file, tensor=name)
    for extra in fields.keys() - FIELDS if len(fields) > len(FIELDS) else ():
        _check_unread(extra, fields[extra], file, name)
        if not header.warnings:
            where = f"'{shown(name)}' has an unknown field '{shown(extra)}'"
            header.warnings.append(f"{shown(file)}: {where}; it was ignored.")
    dtype, shape, offsets = (fields[key] for key in FIELDS)
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise errors.UnknownDtypeError(f"has the unknown dtype {shown(repr(dtype))}.", file=file, tensor=name)
    elements = _checked_elements(shape, file, name)
    begin, end = _checked_offsets(offsets, file, name)
    bits = elements * DTYPE_BITS[dtype]
    if bits > U64_MAX:
        raise errors.ShapeOverflowError(f"has {elements:,} elements, more than fit a file.", file=file, tensor=name)
    if bits % 8:
        problem = f"has {elements:,} elements of {dtype}, which do not fill whole bytes."
        raise errors.MisalignedError(problem, file=file, tensor=name)
    if end - begin != bits // 8:
        problem = f"spans {end - begin:,} bytes, but {dtype} {list(shape)[:8]} takes {bits // 8:,}."
        raise errors.TensorSizeError(problem, file=file, tensor=name)
    header.names.append(name)
    header.dtypes.append(dtype)
    header.shapes.append(tuple(shape))
    header.offsets.append((begin, end))


def _checked_elements(shape: Any, file: str, name: str) -> int:
    if type(shape) is not list:
        raise errors.BadShapeError("has a shape that is not a list.", file=file, tensor=name)
    if len(shape) > MAX_DIMENSIONS:
        problem = f"has {len(shape):,} dimensions; the limit is {MAX_DIMENSIONS}."
        raise errors.BadShapeError(problem, file=file, tensor=name)
    product = 1
    for dimension in shape:
        if not _is_whole(dimension):
            problem = f"has the dimension {shown(dimension)}; it must be a whole number from 0 to 2^64 - 1."
            raise errors.BadShapeError(problem, file=file, tensor=name)
        # The running product, in order, as safetensors multiplies: huge x huge x 0 is refused, 0 x huge is not.
        product *= dimension
        if product > U64_MAX:
            raise errors.ShapeOverflowError("has more than 2^64 - 1 elements.", file=file, tensor=name)
    return product


def _checked_offsets(offsets: Any, file: str, name: str) -> tuple[int, int]:
    if type(offsets) is not list or len(offsets) != 2 or not all(map(_is_whole, offsets)):
        problem = "has data_offsets that are not two whole numbers from 0 to 2^64 - 1."
        raise errors.BadOffsetsError(problem, file=file, tensor=name)
    begin, end = offsets
    if end < begin:
        raise errors.BadOffsetsError(f"has data_offsets that run backwards: {offsets}.", file=file, tensor=name)
    return begin, end


def _checked_layout(header: Header, header_bytes: int, data_bytes: int | None) -> int:
    """The tensors in order of their offsets must fill the data from 0 to its end, each byte owned once."""
    position = 0
    order = sorted(range(len(header)), key=header.offsets.__getitem__)
    for i in order:
        begin, end = header.offsets[i]
        name = header.names[i]
        if begin != position:
            byte = header_bytes + min(begin, position)
            if begin > position:
                problem = (
                    f"begins at data byte {begin:,}; the {begin - position:,} bytes before it belong to no tensor."
                )
                raise errors.HoleError(problem, file=header.file, tensor=name, byte=byte)
            problem = f"begins at data byte {begin:,}, inside the tensor before it."
            raise errors.OverlapError(problem, file=header.file, tensor=name, byte=byte)
        position = end
    if data_bytes is not None and position != data_bytes:
        size = header_bytes + data_bytes
        problem = f"the tensors take {position:,} bytes of data, the file has {data_bytes:,}."
        byte = min(size, header_bytes + position)
        raise errors.SizeMismatchError(problem, file=header.file, byte=byte)
    return position
