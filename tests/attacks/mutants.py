"""Mutated safetensors headers of every kind, compared between our two readers and safetensors itself.

    make fuzz           (or: python tests/attacks/mutants.py [mutants] [seed])

A mutant is a valid file, or one put together from near-valid pieces, changed in one to three places: values of unknown
fields, numbers of any length, surrogates, depth, keys that stand twice, lists and maps for entries and dtypes, offsets
that shift, bytes. A finding is a file we accept and safetensors refuses, one we refuse that it reads without a reason
stated in counting/headers/strict.py, a difference in what is read, or anything but a HeaderError raised.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import safetensors

from moegauge.counting import errors
from moegauge.counting.headers import strict
from moegauge.counting.headers.header import DTYPE_BITS, Header
from moegauge.counting.headers.parse import parse_header

Random = random.Random
DATA_LIMIT_BYTES = 4096
ENTRY_FIELDS = ("dtype", "shape", "data_offsets")

DTYPES = list(DTYPE_BITS)
NAMES = ["a", "b", "model.layers.0.mlp.experts.1.w", "a:b", "x-0", "", "\u00e9", "e\u0301", "\U0001f600", "a\\b", 'q"']
ODD_NAMES = [
    '"\\u0061"',
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\u0000"',
    '"\x7f"',
    '"\\/"',
    '"__metadata__"',
    "null",
    "1",
]
ODD_STRINGS = ['"\\ud800"', '"\\udfff\\ud800"', '"\\ud83dx"', '"\t"', '"\\x"', '"\\u12"', '"\\u00e9"', '"ok"', '""']


def digits(rng: Random, most: int) -> str:
    return "".join(rng.choices("0123456789", k=rng.choice((1, 2, 3, 17, 19, 20, 21, most))))


def number(rng: Random) -> str:
    """A JSON number or nearly one, of any length."""
    kind = rng.randrange(9)
    if kind == 8:
        return rng.choice(
            ("1e308", "9.99e307", "-1.7e308", "1.7976931348623157e308", "1.7976931348623159e308", "1e309")
        )
    if kind == 0:
        return rng.choice(("0", "1", "2", "4", "8", "16", "-0", "-1", "1.0", "4e0", "01", "+1", "1.", ".5", "1e", "-"))
    if kind == 1:
        return str(rng.choice((2**31, 2**32, 2**53, 2**62, 2**63, 2**64)) + rng.randint(-2, 2))
    if kind == 2:
        return str(rng.randint(0, 20))
    if kind == 3:
        return f"{rng.choice(('', '-'))}{rng.randint(1, 9)}{digits(rng, 400)}"
    if kind == 4:
        return f"{digits(rng, 9)}e{rng.choice(('', '-', '+'))}{rng.choice((0, 1, 30, 300, 307, 308, 309, 400, 10**11))}"
    if kind == 5:
        return f"{rng.randint(0, 9)}.{digits(rng, 400)}{rng.choice(('', 'e5', 'E-5', 'e300', 'e330'))}"
    if kind == 6:
        return f"0.{'0' * rng.choice((1, 20, 400))}{rng.randint(1, 9)}e{rng.choice((1, 21, 310, 401, 720))}"
    return f"{rng.randint(1, 9)}{'0' * rng.choice((5, 300, 400))}e-{rng.choice((1, 95, 300))}"


def nested(rng: Random) -> str:
    """Lists and objects, up to and past where readers stop."""
    depth = rng.choice((1, 2, 3, 50, 123, 124, 125, 126, 127, 128, 300))
    core = rng.choice(("", "1", '"x"', "null"))
    if rng.random() < 0.5:
        return "[" * depth + core + "]" * depth
    return '{"a":' * depth + (core or "1") + "}" * depth


def value(rng: Random) -> str:
    """Any JSON value, or nearly one."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(("true", "false", "null", "nul", "NaN", "Infinity", "{}", "[]", "[1,]", "{,}"))
    if kind == 1:
        return rng.choice(ODD_STRINGS)
    if kind == 2:
        return nested(rng)
    if kind == 3:
        return f'{{{rng.choice((*ODD_STRINGS, *ODD_NAMES))}:{rng.choice(("1", *ODD_STRINGS))},"a":1,"a":2}}'
    if kind == 4:
        return f"[{number(rng)},{rng.choice(ODD_STRINGS)}]"
    return number(rng)


class File:
    """A header being put together: entries as (name, fields), each as JSON text, and the bytes of data."""

    def __init__(self, rng: Random) -> None:
        self.metadata = rng.choice((None, None, '{"format":"pt"}', "{}", "null", '{"a":"}","b":":-"}'))
        self.entries: list[tuple[str, list[tuple[str, str]]]] = []
        self.data = 0
        for name in rng.sample(NAMES, rng.randint(0, 4)):
            dtype = rng.choice(DTYPES)
            shape = [rng.choice((0, 1, 2, 3, 4, 8)) for _ in range(rng.randint(0, 3))]
            bits = DTYPE_BITS[dtype]
            for dimension in shape:
                bits *= dimension
            if bits % 8:
                shape.append(8)
                bits *= 8
            end = self.data + bits // 8
            fields = [
                ("dtype", json.dumps(dtype)),
                ("shape", json.dumps(shape)),
                ("data_offsets", f"[{self.data},{end}]"),
            ]
            rng.shuffle(fields)
            self.entries.append((json.dumps(name, ensure_ascii=rng.random() < 0.5), fields))
            self.data = end
        rng.shuffle(self.entries)

    def text(self) -> str:
        parts = [f'"__metadata__":{self.metadata}'] if self.metadata is not None else []
        for name, fields in self.entries:
            inner = ",".join(f'"{key}":{text}' if key else text for key, text in fields)
            parts.append(f"{name}:{inner}" if fields and not fields[0][0] else f"{name}:{{{inner}}}")
        return "{" + ",".join(parts) + "}"


def _entry(file: File, rng: Random) -> list[tuple[str, str]] | None:
    return rng.choice(file.entries)[1] if file.entries else None


def unknown_field(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields is not None:
        name = rng.choice(("extra", "dtypes", "", "Shape", "x:y", "a-b", *(s[1:-1] for s in ODD_STRINGS)))
        fields.insert(rng.randint(0, len(fields)), ("", f'"{name}":{value(rng)}') if name == "" else (name, value(rng)))
        if fields[0][0] == "":
            fields.append(fields.pop(0))


def field_value(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields:
        at = rng.randrange(len(fields))
        fields[at] = (fields[at][0], value(rng))


def field_number(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields:
        at = rng.randrange(len(fields))
        listed = ",".join(number(rng) if rng.random() < 0.5 else rng.choice("01248") for _ in range(rng.randint(0, 4)))
        fields[at] = (fields[at][0], f"[{listed}]")


def many_dimensions(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields:
        count, one = rng.choice((63, 64, 65, 200)), rng.choice(("1", "0", "1", "2"))
        fields[:] = [(key, f"[{','.join([one] * count)}]" if key == "shape" else text) for key, text in fields]


def repeated_field(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields:
        fields.append(rng.choice(fields))


def missing_field(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields:
        fields.pop(rng.randrange(len(fields)))


def repeated_entry(file: File, rng: Random) -> None:
    if file.entries:
        name, fields = rng.choice(file.entries)
        file.entries.append((rng.choice((name, *ODD_NAMES)), list(fields)))


def entry_as_list(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields:
        found = dict(fields)
        order = ["dtype", "shape", "data_offsets"]
        if rng.random() < 0.3:
            rng.shuffle(order)
        fields[:] = [("", f"[{','.join(found.get(key, 'null') for key in order)}]")]


def dtype_as_map(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields:
        inner = rng.choice(("null", "[]", "{}", "1"))
        fields[:] = [(key, f"{{{text}:{inner}}}" if key == "dtype" else text) for key, text in fields]


def entry_value(file: File, rng: Random) -> None:
    fields = _entry(file, rng)
    if fields is not None:
        fields[:] = [("", value(rng))]


def odd_name(file: File, rng: Random) -> None:
    if file.entries:
        at = rng.randrange(len(file.entries))
        file.entries[at] = (rng.choice((*ODD_NAMES, *ODD_STRINGS)), file.entries[at][1])


def metadata(file: File, rng: Random) -> None:
    pairs = [f"{rng.choice(ODD_STRINGS)}:{rng.choice((*ODD_STRINGS, value(rng)))}" for _ in range(rng.randint(0, 3))]
    file.metadata = rng.choice((f"{{{','.join(pairs)}}}", value(rng)))


def shifted(file: File, rng: Random) -> None:
    """Offsets moved, stretched or turned round."""
    fields = _entry(file, rng)
    if fields:
        step = rng.choice((-1, 1, 4, 8, 2**63, 2**64))
        for at, (key, text) in enumerate(fields):
            try:
                begin, end = json.loads(text)
                moved = rng.choice(([begin + step, end + step], [begin, end + step], [end, begin], [begin], [0, 0, 0]))
            except (ValueError, TypeError):
                continue
            if key == "data_offsets":
                fields[at] = (key, json.dumps(moved))


def data_size(file: File, rng: Random) -> None:
    file.data = max(0, file.data + rng.choice((-1, 1, 4, 8)))


def huge_and_zero(file: File, rng: Random) -> None:
    """Products that overflow, or would but for a zero."""
    fields = _entry(file, rng)
    if fields:
        dims = [str(rng.choice((0, 1, 2, 2**32, 2**62, 2**63, 2**64 - 1, 2**64, 2**64 + 2, 10**30))) for _ in range(3)]
        fields[:] = [(key, f"[{','.join(dims)}]" if key == "shape" else text) for key, text in fields]


MUTATORS: tuple[Callable[[File, Random], None], ...] = (
    *(
        unknown_field,
        unknown_field,
        unknown_field,
        unknown_field,
        odd_name,
        metadata,
        field_value,
        field_number,
        many_dimensions,
        repeated_field,
        missing_field,
        repeated_entry,
    ),
    *(entry_as_list, dtype_as_map, entry_value, odd_name, metadata, shifted, data_size, huge_and_zero),
)
BYTES = b'":,{}[]-0159.eE\\ un\xff\xc3\xa9\xed\xa0\x80\0\t'


def byte_mutated(raw: bytes, rng: Random) -> bytes:
    """Bytes set, cut, put in or doubled; the length stays true, so that more than the length is tested."""
    text = bytearray(raw[8:])
    at = rng.randrange(len(text)) if text else 0
    kind = rng.randrange(5)
    if kind == 0 and text:
        text[at] = rng.choice(BYTES)
    elif kind == 1 and text:
        del text[at : at + rng.choice((1, 1, 2, 8))]
    elif kind == 2:
        text[at:at] = bytes(rng.choices(BYTES, k=rng.choice((1, 1, 2, 3))))
    elif kind == 3:
        piece = text[at : at + rng.randint(1, 60)]
        text[at:at] = piece
    else:
        text += rng.choice((b" ", b"\n", b"\0", b"{}", b",", b"  \t"))
    return struct.pack("<Q", len(text)) + bytes(text)


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """`count` files; the same ones for the same seed."""
    rng = Random(seed)
    for _ in range(count):
        file = File(rng)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            rng.choice(MUTATORS)(file, rng)
        head = file.text().encode("utf-8", "surrogatepass")
        raw = struct.pack("<Q", len(head)) + head
        if rng.random() < 0.35:
            raw = byte_mutated(raw, rng)
        if rng.random() < 0.03:
            raw = struct.pack("<Q", rng.choice((0, 1, 2, len(raw), 2**62, 2**64 - 1, 10**8 + 1))) + raw[8:]
        yield raw + bytes(min(file.data, DATA_LIMIT_BYTES))


def reference(raw: bytes) -> list[tuple[str, dict[str, Any]]] | None:
    """What safetensors reads, None when it refuses."""
    try:
        return safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return None


def ours(raw: bytes) -> Header | str:
    """The header, or the name of the error's class."""
    try:
        return parse_header(raw, file="f", file_size=len(raw))
    except errors.HeaderError as error:
        message, name = str(error), type(error).__name__
    assert message.isprintable()
    return name


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs."""


def _largest(inner: Any) -> float:
    """The largest number in a value, by size."""
    if isinstance(inner, list):
        return max(
            (_largest(part) for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))), default=0.0
        )
    return abs(float(inner)) if type(inner) in (int, float) else 0.0


def stricter_reason(raw: bytes) -> str:
    """Which of the reasons in counting/headers/strict.py a file gives us to refuse it, by another reader; or none."""
    try:
        text = raw[8 : 8 + struct.unpack_from("<Q", raw)[0]].decode()
        document = json.loads(text, object_pairs_hook=_Pairs, parse_int=float)
    except (ValueError, RecursionError):
        return ""
    objects = [document, *(entry for _, entry in document)]
    for each in objects:
        if isinstance(each, _Pairs) and len(dict(each)) < len(each):
            return "a key stands twice"
    for name, entry in document:
        if name == "__metadata__":
            continue
        if not isinstance(entry, _Pairs):
            return "an entry is a list"
        fields = dict(entry)
        if not isinstance(fields.get("dtype"), str):
            return "a dtype is a map"
        if len(fields.get("shape", ())) > 64:
            return "more than 64 dimensions"
        if any(_largest(inner) >= 1e308 for key, inner in fields.items() if key not in ENTRY_FIELDS):
            return "a number of 1e308 or more"
    return ""


KEYS = ("names", "dtypes", "shapes", "offsets", "metadata", "header_bytes", "data_bytes")


def check(raw: bytes) -> str:
    """The three readers on one file; how they agree.

    Raises:
        AssertionError: they do not.
    """
    mine, theirs = ours(raw), reference(raw)
    if isinstance(mine, str):
        if theirs is None:
            return "both refuse"
        reason = stricter_reason(raw)
        assert reason, f"{mine}: refused without a documented reason"
        return f"only we refuse: {reason}"
    assert theirs is not None, "accepted what safetensors refuses"
    found = {name: (info["dtype"], tuple(info["shape"])) for name, info in theirs}
    assert found == dict(zip(mine.names, zip(mine.dtypes, mine.shapes, strict=True), strict=True))
    length = struct.unpack_from("<Q", raw)[0]
    again = strict.read(raw[8 : 8 + length], file="f", data_bytes=len(raw) - 8 - length)
    for key in KEYS:
        assert getattr(again, key) == getattr(mine, key), key
    return "both accept"


def run(seed: int, count: int) -> Counter[str]:
    """How the readers agree on `count` mutants; the file is named in the AssertionError when they do not."""
    tally: Counter[str] = Counter()
    for raw in mutants(seed, count):
        try:
            tally[check(raw)] += 1
        except Exception as error:
            raise AssertionError(f"{error!r} on {raw!r}") from error
    return tally


def main() -> int:
    """Print the tally."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    start = time.monotonic()
    tally = run(seed, count)
    sys.stdout.write(f"{count:,} mutants, seed {seed}, {time.monotonic() - start:.0f} s, no disagreement\n")
    for kind, number_of in tally.most_common():
        sys.stdout.write(f"{number_of:>12,}  {kind}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
