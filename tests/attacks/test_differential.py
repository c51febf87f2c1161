"""Against safetensors itself: whatever it refuses, we refuse; whatever its writer writes, we read right.

Files are valid ones with bytes flipped, cut, doubled or replaced, and headers put together from near-valid pieces.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moegauge.counting import errors
from moegauge.counting.headers import strict
from moegauge.counting.headers.header import DTYPE_BITS, Header
from moegauge.counting.headers.parse import parse_header

KEYS = ("names", "dtypes", "shapes", "offsets", "metadata", "header_bytes", "data_bytes")
TEXT = st.text(max_size=12)
NUMPY = [np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.float16, np.int32, np.float32, np.int64, np.float64]


def reference(raw: bytes) -> list[tuple[str, dict[str, Any]]] | None:
    """What safetensors reads, None when it refuses."""
    try:
        return safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return None


def ours(raw: bytes) -> Header | None:
    message = ""
    try:
        return parse_header(raw, file="f", file_size=len(raw))
    except errors.HeaderError as error:
        message = str(error)
    assert message.isprintable()
    return None


def slow(raw: bytes) -> Header | None:
    """The strict reader alone, for headers whose length is believable."""
    length = struct.unpack_from("<Q", raw)[0]
    try:
        return strict.read(raw[8 : 8 + length], file="f", data_bytes=len(raw) - 8 - length)
    except errors.HeaderError:
        return None


def check(raw: bytes) -> None:
    """The three readers on one file."""
    mine, theirs = ours(raw), reference(raw)
    if mine is None:
        return
    assert theirs is not None, "accepted what safetensors refuses"
    found = {name: (info["dtype"], tuple(info["shape"])) for name, info in theirs}
    assert found == dict(zip(mine.names, zip(mine.dtypes, mine.shapes, strict=True), strict=True))
    again = slow(raw)
    assert again is not None
    for key in KEYS:
        assert getattr(again, key) == getattr(mine, key)


@settings(deadline=None)
@given(
    st.dictionaries(
        TEXT,
        st.tuples(st.sampled_from(NUMPY), st.lists(st.integers(0, 3), max_size=4)),
        max_size=6,
    ),
    st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
)
def test_what_the_real_writer_writes_is_read_right(
    tensors: dict[str, tuple[Any, list[int]]], metadata: dict[str, str] | None
) -> None:
    tensors.pop("__metadata__", None)
    assume(tensors or metadata != {})  # safetensors 0.8.0 then writes `{},"__metadata__":{}}`, which it cannot read
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in tensors.items()}
    raw = safetensors.numpy.save(arrays, metadata)
    header = parse_header(raw, file="f", file_size=len(raw))
    assert {name: (shape, size) for name, _, shape, size in header.tensors()} == {
        name: (array.shape, array.nbytes) for name, array in arrays.items()
    }
    assert header.elements == [math.prod(shape) for shape in header.shapes]
    assert (header.metadata or {}) == (metadata or {})
    check(raw)


def sample(names: list[str]) -> bytes:
    return bytes(safetensors.numpy.save({name: np.zeros((2, 3), np.float32) for name in names}, {"format": "pt:x"}))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b:c", "model.layers.0.w", "\u00e9", "x-0"]), min_size=1, max_size=3, unique=True),
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from(["set", "cut", "insert", "swap"]),
            st.sampled_from(b'":,{}[]-0159.eE\\ n\xff\0'),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_mutated_files(names: list[str], mutations: list[tuple[int, str, int]]) -> None:
    raw = bytearray(sample(names))
    for place, kind, byte in mutations:
        at = place % len(raw)
        if kind == "set":
            raw[at] = byte
        elif kind == "cut":
            del raw[at]
        elif kind == "insert":
            raw.insert(at, byte)
        else:
            raw[at], raw[-1 - at] = raw[-1 - at], raw[at]
        if kind in ("cut", "insert") and at >= 8:  # keep the length true, so that more than the length is tested
            length = struct.unpack("<Q", raw[:8])[0] + (1 if kind == "insert" else -1)
            raw[:8] = struct.pack("<Q", length % 2**64)
    check(bytes(raw))


NUMBER = st.sampled_from(
    ["0", "1", "2", "4", "8", "16", "-0", "-1", "1.0", "1e0", "true", "null", '"1"', str(2**64), "01"]
)
SHAPE = st.one_of(st.lists(NUMBER, max_size=3).map(lambda n: f"[{','.join(n)}]"), st.sampled_from(["null", "4", "{}"]))
DTYPE = st.sampled_from([*DTYPE_BITS, "f32", ""]).map(json.dumps)
FIELD = st.one_of(
    st.tuples(st.just('"dtype"'), DTYPE),
    st.tuples(st.just('"shape"'), SHAPE),
    st.tuples(
        st.just('"data_offsets"'), st.sampled_from(["[0,4]", "[0,8]", "[4,8]", "[0,0]", "[4,0]", "[0,1,2]", "[-0,4]"])
    ),
    st.tuples(st.just('"extra"'), NUMBER),
)
USUAL = st.tuples(DTYPE, SHAPE, st.sampled_from(["[0,4]", "[4,8]", "[0,16]", "[0,2]"])).map(
    lambda t: f'{{"dtype":{t[0]},"shape":{t[1]},"data_offsets":{t[2]}}}'
)
ENTRY = st.one_of(
    USUAL,
    st.lists(FIELD, max_size=4).map(lambda f: "{" + ",".join(f"{k}:{v}" for k, v in f) + "}"),
)
NAME = st.sampled_from(['"a"', '"b"', '"__metadata__"', '"a:b"', r'"\u0061"', r'"\ud800"', '"-0"', '"\u00e9"'])
METADATA = st.sampled_from(["{}", "null", '{"a":"b"}', '{"a":"}"}', '{"a":1}', '{"a":"b","a":"c"}', "[]"])
PAIR = st.one_of(st.tuples(NAME, ENTRY), st.tuples(st.just('"__metadata__"'), METADATA))


@settings(max_examples=500, deadline=None)
@given(
    st.lists(PAIR, max_size=4),
    st.sampled_from(["", " ", "\n"]),
    st.sampled_from(["", " ", "\0", "{}", ","]),
    st.integers(0, 20),
)
def test_headers_put_together_from_pieces(
    pairs: list[tuple[str, str]], before: str, after: str, data_bytes: int
) -> None:
    text = (before + "{" + ",".join(f"{name}:{entry}" for name, entry in pairs) + "}" + after).encode()
    check(struct.pack("<Q", len(text)) + text + bytes(data_bytes))


def test_the_pieces_do_make_valid_headers() -> None:
    """The strategies above are no good if everything they make is refused."""
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    text = f'{{"__metadata__":{{"a":"}}"}},"a:b":{entry}}}'.encode()
    raw = struct.pack("<Q", len(text)) + text + bytes(4)
    header = ours(raw)
    assert header is not None
    assert header.metadata == {"a": "}"}
    check(raw)
