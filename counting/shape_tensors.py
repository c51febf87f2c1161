"""Read `weight_shape` tensors (8 or 16 bytes each), where a packing rounds the true shape up."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from math import prod

from moegauge.counting.group import Group
from moegauge.counting.headers.header import Header
from moegauge.counting.packings import Shape
from moegauge.counting.roles import layer_place, template_of
from moegauge.counting.storage import SHAPE_LEAVES, split_leaf
from moegauge.errors import CheckpointError
from moegauge.limits import MOST_READS

# Most tensors read for one checkpoint: each is a request where the checkpoint is remote.
_FORMATS = {"I32": "i", "U32": "I", "I64": "q", "U64": "Q"}


def read_shapes(groups: list[Group], headers: Sequence[Header], read: Callable[[int, int], bytes]) -> None:
    """Make the logical shapes of `groups` exact where their modules store them and all of a group's agree.

    Args:
        groups: groups whose shape is an upper bound.
        headers: the checkpoint's headers.
        read: the bytes of one tensor by shard and position. A read that fails leaves the bound as it is.
    """
    wanted = {(group.module, group.layer): group for group in groups}
    places = _places(set(wanted), headers)
    reads = sum(len(found) for found in places.values())
    if reads > MOST_READS:
        return
    for key, found in places.items():
        group = wanted[key]
        try:
            shapes = {_decode(headers[shard].dtypes[at], read(shard, at)) for shard, at in found}
        except (CheckpointError, struct.error, KeyError):
            continue
        shape = shapes.pop() if len(shapes) == 1 else None
        # What is read is as little to be trusted as a config: it may shrink the bound, never pass it.
        if shape is None or len(found) != group.tensors or not 0 < prod(shape) <= prod(group.logical or ()):
            continue
        if min(shape) > 0:
            group.logical, group.exact = shape, True
            group.rule += ", shape read from its data"


def _places(modules: set[tuple[str, int]], headers: Sequence[Header]) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """(module, layer) -> (shard, position) of each of its shape tensors."""
    places: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for shard, header in enumerate(headers):
        for at, name in enumerate(header.names):
            if not name.endswith(SHAPE_LEAVES):
                continue
            template = template_of(name)
            start = layer_place(template).start
            number = name[start : name.find(".", start)] if start > 0 else ""
            key = (split_leaf(template)[0], int(number) if number.isdecimal() else -1)
            if key in modules:
                places.setdefault(key, []).append((shard, at))
    return places


def _decode(dtype: str, raw: bytes) -> Shape:
    """The integers of a shape tensor."""
    code = _FORMATS[dtype]
    return struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)
