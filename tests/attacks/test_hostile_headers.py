"""Ninety-one headers a scanner must survive, each with the exact error, or accepted; safetensors itself is asked too.

Rows 1-91 in the order of the list they were collected in; `None` means the header is accepted. Where safetensors 0.8
accepts what we refuse, the row says so: a tensor named twice and a shape of 100,000 dimensions.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import safetensors

from moegauge.counting import errors
from moegauge.counting.headers import strict
from moegauge.counting.headers.header import Header
from moegauge.counting.headers.parse import header_length, parse_header


def framed(text: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A file: 8-byte length (of the text unless given), text, data."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(shape: str = "[2,2]", offsets: str = "[0,16]", dtype: str = '"F32"', name: str = '"w"') -> str:
    return f'{{{name}:{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


def two(first: str, second: str, shape: str = "[4]") -> str:
    entry = '"{}":{{"dtype":"F32","shape":{},"data_offsets":{}}}'
    return "{" + entry.format("a", shape, first) + "," + entry.format("b", shape, second) + "}"


ENTRY = '"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}'
FLAT = '"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
HIDING = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DATA = bytes(16)
GOOD = framed(one(), DATA)
HUGE = 2**64 - 1


Refusal = type[errors.HeaderError] | None


@dataclass(frozen=True)
class Row:
    number: str
    what: str
    raw: bytes
    error: Refusal
    reference_accepts: bool = False


def rows() -> list[Row]:
    out: list[Row] = []

    def add(
        number: str, what: str, raw: bytes, error: type[errors.HeaderError] | None, reference: bool = False
    ) -> None:
        out.append(Row(number, what, raw, error, reference or error is None))

    add("1", "empty file", b"", errors.TooShortError)
    add("2", "seven bytes", bytes(7), errors.TooShortError)
    add("3", "length only", struct.pack("<Q", 2), errors.TooShortError)
    add("4", "length 0", framed(one(), DATA, length=0), errors.NotJsonError)
    add("5", "length 2^63", framed(one(), DATA, length=2**63), errors.HeaderTooLargeError)
    add("6", "length 2^64 - 1", framed(one(), DATA, length=HUGE), errors.HeaderTooLargeError)
    add("7", "length 100,000,001", framed(one(), DATA, length=100_000_001), errors.HeaderTooLargeError)
    add("8", "length beyond the file", framed(one(), DATA, length=10_000), errors.TruncatedError)
    add("9", "length cuts the JSON", framed(one(), DATA, length=20), errors.NotJsonError)
    add("10", "data 2 bytes short", GOOD[:-2], errors.SizeMismatchError)
    add("11", "bytes after the end", GOOD + b"PK", errors.SizeMismatchError)
    add(
        "12",
        "invalid UTF-8",
        framed(one(name='"w\udcff"').encode("utf-8", "surrogateescape"), DATA),
        errors.NotUtf8Error,
    )
    add("13", "byte order mark", framed(b"\xef\xbb\xbf" + one().encode(), DATA), errors.NotJsonError)
    add("14", "UTF-16", framed(one().encode("utf-16"), DATA), errors.NotUtf8Error)
    add("15", "leading spaces", framed("   " + one(), DATA), None)
    add("16", "trailing spaces", framed(one() + "     ", DATA), None)
    add("17", "newlines and tabs", framed("\n\t" + one() + "\r\n", DATA), None)
    add("18", "trailing NULs", framed(one() + "\0\0\0", DATA), errors.NotJsonError)
    add("19", "two JSON values", framed(one() + "{}", DATA), errors.NotJsonError)
    add("20", "root is an array", framed("[" + one() + "]", DATA), errors.NotAnObjectError)
    add("21", "root is null", framed("null"), errors.NotAnObjectError)
    add("22", "root is a string", framed('"w"'), errors.NotAnObjectError)
    add("23", "no tensors, no data", framed("{}"), None)
    add("24", "no tensors, data", framed("{}", DATA), errors.SizeMismatchError)
    add("25", "nesting 100,000 deep", framed("[" * 100_000, DATA), errors.NestingError)
    duplicate = errors.DuplicateKeyError
    add("26", "tensor twice, the same", framed(f"{{{ENTRY},{ENTRY}}}", DATA), duplicate, reference=True)
    add("27", "tensor twice, another shape", framed(f"{{{ENTRY},{FLAT}}}", DATA), duplicate, reference=True)
    add("28", "tensor twice, hiding bytes", framed(f"{{{ENTRY},{HIDING}}}", DATA), duplicate)
    meta = '{{"__metadata__":{}{},' + ENTRY.replace("{", "{{").replace("}", "}}") + "}}"
    add("29", "__metadata__ twice", framed(meta.format('{"a":"b"}', ',"__metadata__":{"a":"c"}'), DATA), duplicate)
    twice = '{"w":{"dtype":"F32","dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    add("30", "dtype twice in a tensor", framed(twice, DATA), duplicate)
    add("31", "__metadata__ a list", framed(meta.format("[]", ""), DATA), errors.BadMetadataError)
    add("32", "__metadata__ with a number", framed(meta.format('{"a":1}', ""), DATA), errors.BadMetadataError)
    add("33", "__metadata__ null", framed(meta.format("null", ""), DATA), None)
    add("33b", "__metadata__ empty", framed(meta.format("{}", ""), DATA), None)
    add("34", "__metadata__ nested", framed(meta.format('{"a":{"b":"c"}}', ""), DATA), errors.BadMetadataError)
    add("35", "tensor is no object", framed('{"w":[]}'), errors.BadEntryError)
    add("36", "no dtype", framed('{"w":{"shape":[2,2],"data_offsets":[0,16]}}', DATA), errors.BadEntryError)
    add("37", "no shape", framed('{"w":{"dtype":"F32","data_offsets":[0,16]}}', DATA), errors.BadEntryError)
    add("38", "no offsets", framed('{"w":{"dtype":"F32","shape":[2,2]}}', DATA), errors.BadEntryError)
    extra = '{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16],"extra":1}}'
    add("39", "unknown extra field", framed(extra, DATA), None)
    add("40", "unknown dtype", framed(one(dtype='"F33"'), DATA), errors.UnknownDtypeError)
    add("41", "lower-case dtype", framed(one(dtype='"f32"'), DATA), errors.UnknownDtypeError)
    add("42", "dtype a number", framed(one(dtype="32"), DATA), errors.UnknownDtypeError)
    for number, dimension in enumerate(("-2", "2.0", "4e0", "true", '"4"', "null"), start=43):
        add(str(number), f"dimension {dimension}", framed(one(shape=f"[{dimension}]"), DATA), errors.BadShapeError)
    add("49", "dimension NaN", framed(one(shape="[NaN]"), DATA), errors.NotJsonError)
    add("50", "dimension Infinity", framed(one(shape="[Infinity]"), DATA), errors.NotJsonError)
    add("51", "shape a string", framed(one(shape='"22"'), DATA), errors.BadShapeError)
    add("52", "dimension 2^64", framed(one(shape=f"[{2**64}]"), DATA), errors.BadShapeError)
    overflow = errors.ShapeOverflowError
    add("53", "product past 2^64 - 1", framed(one(shape=f"[{2**33},{2**33}]"), DATA), overflow)
    add("54", "product that wraps to 4", framed(one(shape=f"[{2**62 + 1},4]"), DATA), overflow)
    add("55", "integer of 5,000 digits", framed(one(shape="[" + "1" * 5000 + "]"), DATA), errors.BadShapeError)
    ones = "[" + ",".join("1" * 100_000) + "]"
    add("56", "100,000 dimensions", framed(one(ones, "[0,4]"), bytes(4)), errors.BadShapeError, reference=True)
    add("57", "a zero dimension", framed(one(shape="[0,7]", offsets="[0,0]")), None)
    add("58", "zero x huge", framed(one(shape=f"[0,{HUGE}]", offsets="[0,0]")), None)
    add("58b", "huge x huge x zero", framed(one(shape=f"[{HUGE},{HUGE},0]", offsets="[0,0]")), overflow)
    add("59", "scalar", framed(one(shape="[]", offsets="[0,4]"), bytes(4)), None)
    add("60", "offsets reversed", framed(one(offsets="[16,0]"), DATA), errors.BadOffsetsError)
    add("61", "offset negative", framed(one(offsets="[-16,0]"), DATA), errors.BadOffsetsError)
    add("62", "three offsets", framed(one(offsets="[0,16,16]"), DATA), errors.BadOffsetsError)
    add("63", "one offset", framed(one(offsets="[16]"), DATA), errors.BadOffsetsError)
    add("64", "not from 0", framed(one(offsets="[8,24]"), bytes(24)), errors.HoleError)
    add("65", "hole", framed(two("[0,16]", "[20,36]"), bytes(36)), errors.HoleError)
    add("66", "overlap", framed(two("[0,16]", "[12,28]"), bytes(28)), errors.OverlapError)
    nested = (
        '{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}'
    )
    add("67", "nested overlap", framed(nested, bytes(32)), errors.OverlapError)
    add("68", "bytes are not shape x dtype", framed(one(shape="[3]"), DATA), errors.TensorSizeError)
    add("69", "past the file", framed(one(shape="[8]", offsets="[0,32]"), DATA), errors.SizeMismatchError)
    add("70", "F4 with 3 elements", framed(one("[3]", "[0,2]", '"F4"'), bytes(2)), errors.MisalignedError)
    add("71", "F4, even", framed(one("[4]", "[0,2]", '"F4"'), bytes(2)), None)
    add("72", "F8_E8M0", framed(one("[4]", "[0,4]", '"F8_E8M0"'), bytes(4)), None)
    add("73", "F6_E2M3", framed(one("[4]", "[0,3]", '"F6_E2M3"'), bytes(3)), None)
    for number, name in (("74", '""'), ("75", '"../../etc/passwd"'), ("76", r'"\u001b[31mred"'), ("77", r'"a\u0000b"')):
        add(number, f"name {name}", framed(one(name=name), DATA), None)
    add("78", "lone surrogate", framed(one(name=r'"\ud800"'), DATA), errors.NotUtf8Error)
    add("79", "name of 1 MB", framed(one(name='"' + "n" * 1_000_000 + '"'), DATA), None)
    twins = two("[0,16]", "[16,32]").replace('"a"', '"\u00e9"').replace('"b"', '"e\u0301"')
    add("80", "NFC and NFD twins", framed(twins, bytes(32)), None)
    add("81", "order of the file is not that of the offsets", framed(two("[16,32]", "[0,16]"), bytes(32)), None)
    add("82", "comment", framed("/* */" + one(), DATA), errors.NotJsonError)
    add("83", "trailing comma", framed(one()[:-1] + ",}", DATA), errors.NotJsonError)
    add("84", "single quotes", framed(one().replace('"', "'"), DATA), errors.NotJsonError)
    add("85", "minus zero", framed(one(offsets="[-0,16]"), DATA), errors.BadOffsetsError)
    add("86", "leading zero", framed(one(offsets="[00,16]"), DATA), errors.NotJsonError)
    other = errors.NotSafetensorsError
    add("87", "pickle", b"\x80\x02}q\x00X\x06\x00\x00\x00weightq\x01K\x01s.", other)
    add("88", "zip (.pt)", b"PK\x03\x04\x14\x00\x00\x00\x08\x00archive/data.pkl", other)
    add("89", "GGUF", b"GGUF\x03\x00\x00\x00" + bytes(16), other)
    add("90", "Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", other)
    add("91", "HTML page", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", other)
    return out


ROWS = rows()
NAMED = pytest.mark.parametrize("row", ROWS, ids=[f"{row.number} {row.what}" for row in ROWS])


def parse(raw: bytes) -> Header:
    return parse_header(raw, file="model.safetensors", file_size=len(raw))


def test_every_number_has_its_row() -> None:
    assert {row.number.rstrip("b") for row in ROWS} == {str(n) for n in range(1, 92)}


@NAMED
def test_row(row: Row) -> None:
    if row.error is None:
        header = parse(row.raw)
        assert header.header_bytes + header.data_bytes == len(row.raw)
        return
    with pytest.raises(row.error) as caught:
        parse(row.raw)
    error = caught.value
    assert type(error) is row.error
    assert error.file == "model.safetensors"
    assert error.advice
    message = str(error)
    assert message.isprintable()
    assert len(message) < 700


@NAMED
def test_safetensors_verdict_is_the_one_noted(row: Row) -> None:
    """The rows say what safetensors does; whatever it refuses, we refuse."""
    try:
        safetensors.deserialize(row.raw)
        accepts = True
    except safetensors.SafetensorError:
        accepts = False
    assert accepts == row.reference_accepts
    assert accepts or row.error is not None


@NAMED
def test_fast_and_strict_readers_agree(row: Row) -> None:
    """Whatever the fast reader accepts, the slow one reads the same."""
    try:
        header = parse(row.raw)
    except errors.HeaderError:
        return
    text = row.raw[8 : header.header_bytes]
    slow = strict.read(text, file=header.file, data_bytes=header.data_bytes)
    for key in ("names", "dtypes", "shapes", "offsets", "metadata", "header_bytes", "data_bytes"):
        assert getattr(slow, key) == getattr(header, key)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"\x1f\x8b\x08\x00" + bytes(60), "gzip"),  # its first 8 bytes are a believable length: 559,903
        (b"\x28\xb5\x2f\xfd" + bytes(60), "zstd"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", "NumPy"),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "HDF5"),
        (b'{"model_type": "gpt_oss"}', "text"),
        (b"<?xml version='1.0'?><Error>", "HTML"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", "pickle"),
    ],
)
def test_other_formats_are_named(raw: bytes, kind: str) -> None:
    with pytest.raises(errors.NotSafetensorsError) as caught:
        parse(raw)
    assert kind in caught.value.kind


# Beyond the list: what would slip past one of the fast reader's shortcuts if another did not hold.
HIDDEN = r'"x\u003a\u003a\u003a\u003a":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}'


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (framed(one("[3]", "[0,1]", '"F4"'), bytes(1)), errors.MisalignedError),  # 12 bits, as if they were 1 byte
        (framed(one(shape=f"[{2**62}]", dtype='"F64"'), DATA), errors.ShapeOverflowError),  # 2^68 bits
        (framed(one(shape="[-2,-2]"), DATA), errors.BadShapeError),  # whose product is 4
        # Four escaped colons in one name make up for the four of a tensor that stands twice.
        (framed(f"{{{ENTRY},{ENTRY},{HIDDEN}}}", DATA), errors.DuplicateKeyError),
    ],
)
def test_what_a_shortcut_could_miss(raw: bytes, error: type[errors.HeaderError]) -> None:
    with pytest.raises(error):
        parse(raw)


def test_header_limit_holds_in_a_file_that_is_large_enough() -> None:
    with pytest.raises(errors.HeaderTooLargeError):
        header_length(struct.pack("<Q", 100_000_001), file="f", file_size=10**12)
    assert header_length(struct.pack("<Q", 100_000_000), file="f", file_size=10**12) == 100_000_000


def test_scalars_and_zeros_are_counted_right() -> None:
    assert parse(next(r.raw for r in ROWS if r.number == "59")).elements == [1]
    assert parse(next(r.raw for r in ROWS if r.number == "57")).elements == [0]


@pytest.mark.parametrize("number", ["23", "39", "80"])
def test_oddities_are_noted(number: str) -> None:
    (warning,) = parse(next(r.raw for r in ROWS if r.number == number)).warnings
    assert warning.startswith("model.safetensors: ")


@pytest.mark.parametrize(
    ("number", "byte"), [("5", 0), ("8", 0), ("9", 8 + 20), ("12", 8 + 3), ("13", 8), ("24", 10), ("11", len(GOOD))]
)
def test_the_byte_is_named(number: str, byte: int) -> None:
    with pytest.raises(errors.HeaderError) as caught:
        parse(next(r.raw for r in ROWS if r.number == number))
    assert caught.value.byte == byte


@pytest.mark.parametrize("number", ["37", "40", "52", "60", "65", "68", "70"])
def test_the_tensor_is_named(number: str) -> None:
    with pytest.raises(errors.HeaderError) as caught:
        parse(next(r.raw for r in ROWS if r.number == number))
    assert caught.value.tensor in ("w", "b")
    assert f"tensor '{caught.value.tensor}'" in str(caught.value)


def test_names_are_escaped_and_cut_in_messages() -> None:
    name = json.dumps("\x1b[31m" + "x" * 10_000)
    with pytest.raises(errors.UnknownDtypeError) as caught:
        parse(framed(one(name=name, dtype='"?"'), DATA))
    assert "\\x1b[31m" in str(caught.value)
    assert len(str(caught.value)) < 700


def peak_bytes(action: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claim", [2**63, HUGE, 100_000_001, 99_999_999])
def test_a_claimed_length_allocates_nothing(claim: int) -> None:
    def look() -> None:
        with pytest.raises(errors.HeaderError):
            header_length(struct.pack("<Q", claim) + b"{", file="f", file_size=10_000)

    look()
    assert peak_bytes(look) < 100_000


def test_a_header_of_countless_values_is_refused_before_it_is_decoded() -> None:
    """12 MB of JSON that would become gigabytes of objects."""
    raw = framed('{"a":[' + "0," * 6_000_000 + "0]," + '"b":' * 1 + "0," * 5_000_000 + "0}")
    with pytest.raises(errors.HeaderTooLargeError):
        parse(raw)


def test_unknown_file_size_is_said() -> None:
    header = parse_header(GOOD[:-16], file="f", file_size=None)
    assert header.data_bytes == 16
    assert "not checked" in header.warnings[0]
