"""Read the index of a sharded checkpoint strictly, and reconcile it with what the shards hold."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from moegauge.counting import errors
from moegauge.counting.headers.header import Header
from moegauge.counting.headers.strict import KeyValues
from moegauge.limits import INDEX_LIMIT_BYTES, INDEX_LIMIT_VALUES, NAME_LIMIT_CHARACTERS, SHARD_LIMIT
from moegauge.text import shown

SUFFIX = ".safetensors"

_SHARD_NAME = re.compile(r"(?:\w[\w.+\-]*/)*\w[\w.+\-]*\.safetensors")
_WINDOWS_DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|COM[0-9¹²³]|LPT[0-9¹²³])(?:\.|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Index:
    """An index as read.

    Attributes:
        file: its name, for messages.
        weight_map: tensor name -> shard name; every shard name has passed `check_shard_name`.
        shards: the distinct shard names, sorted.
        total_size: `metadata.total_size` as written, whatever it is; None when absent. Never a source of a count.
    """

    file: str
    weight_map: dict[str, str]
    shards: list[str] = field(default_factory=list)
    total_size: Any = None


def _decoder(shard: Any) -> msgspec.json.Decoder[Any]:
    """A decoder of indexes whose shards are of type `shard`."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("weight_map", dict[str, shard]),
        ("metadata", msgspec.Raw, msgspec.Raw(b"")),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Document", fields))


_DOCUMENT = _decoder(str)


def check_shard_name(name: str, *, file: str) -> None:
    """Refuse a shard name that could leave the folder on any system: `..`, a drive, a root, a URL, a device.

    Names are words of letters, digits, `_ . + -`, joined by single slashes, ending in `.safetensors`.

    Raises:
        ShardNameError.
    """
    # The length first: patterns take a name of 400,000 characters apart in every way it can be.
    long = len(name) > NAME_LIMIT_CHARACTERS
    if long or not _SHARD_NAME.fullmatch(name) or any(map(_WINDOWS_DEVICE.match, name.split("/"))):
        problem = f"the shard name '{shown(name)}' is not a plain .safetensors name."
        raise errors.ShardNameError(problem, file=file)


def parse_index(raw: bytes, *, file: str, names: Collection[str] = ()) -> Index:
    """Read an index.

    Args:
        raw: the file; `file`: its name, for messages.
        names: the files beside it. Shards among them are made once each, not once a tensor; others are as good.
    Raises:
        BadIndexError, DuplicateIndexKeyError, ShardNameError, TooManyShardsError.
    """
    if len(raw) > INDEX_LIMIT_BYTES:
        raise errors.BadIndexError(f"{len(raw):,} bytes; the limit is {INDEX_LIMIT_BYTES:,}.", file=file)
    read = _plain(raw, sorted(name for name in names if name.endswith(SUFFIX))) or _strict(raw, file)
    weight_map, metadata = read
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        check_shard_name(shard, file=file)
    if len(shards) > SHARD_LIMIT:
        problem = f"names {len(shards):,} shards; the limit is {SHARD_LIMIT:,}."
        raise errors.TooManyShardsError(problem, file=file)
    return Index(file, weight_map, shards, metadata.get("total_size"))


def _plain(raw: bytes, shards: list[str]) -> tuple[dict[str, str], dict[str, Any]] | None:
    """The usual index, or None when a slower look is needed. Colons are counted as in `counting.headers.parse`:
    a repeated key would leave one too many."""
    if b"\\" in raw:
        return None
    try:
        document = _decode(raw, shards)
        metadata = msgspec.json.decode(document.metadata, type=dict[str, int]) if document.metadata else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    weights = document.weight_map
    colons = int(np.count_nonzero(np.frombuffer(raw, np.uint8) == ord(":"))) - 1 - len(weights)
    colons -= 1 + len(metadata) if document.metadata else 0
    if colons:  # seldom: names hold none, and shards must not
        colons -= "".join(weights).count(":") + "".join(metadata).count(":")
    return None if colons else (weights, dict(metadata))


def _decode(raw: bytes, shards: list[str]) -> Any:
    if 0 < len(shards) <= SHARD_LIMIT:
        with contextlib.suppress(msgspec.ValidationError):  # a shard elsewhere, or one that is missing
            return _decoder(Literal[tuple(shards)]).decode(raw)
    return _DOCUMENT.decode(raw)


def _strict(raw: bytes, file: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Any index, with the fault named."""
    if raw.count(b",") + raw.count(b":") > INDEX_LIMIT_VALUES:
        raise errors.BadIndexError(f"holds more than {INDEX_LIMIT_VALUES:,} values.", file=file)
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, file), parse_int=_int)
    except RecursionError:
        raise errors.BadIndexError("nests deeper than any reader follows.", file=file) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise errors.BadIndexError(f"is not JSON: {error}.", file=file) from None
    if not isinstance(document, KeyValues):
        raise errors.BadIndexError("its outermost value is not an object.", file=file)
    fields = dict(document)
    if "weight_map" not in fields:
        raise errors.BadIndexError("has no weight_map.", file=file)
    weights = fields["weight_map"]
    if not isinstance(weights, KeyValues):
        raise errors.BadIndexError("its weight_map is not an object.", file=file)
    for name, shard in weights:
        if not isinstance(shard, str):
            raise errors.BadIndexError("is mapped to something other than a string.", file=file, tensor=name)
    metadata = fields.get("metadata")
    return dict(weights), dict(metadata) if isinstance(metadata, KeyValues) else {}


def _int(text: str) -> int | str:
    return int(text) if len(text) <= 40 else text[:40]


def _unique(pairs: list[tuple[str, Any]], file: str) -> KeyValues:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise errors.DuplicateIndexKeyError(f"the key '{shown(key)}' stands twice.", file=file)
        seen.add(key)
    return KeyValues(pairs)


def reconcile(index: Index, headers: Sequence[Header]) -> list[str]:
    """Check that the index and the shards tell one story; warnings for what is odd but harmless.

    Raises:
        DuplicateTensorError, MissingTensorError, MisplacedTensorError, UnlistedTensorError.
    """
    agreeing = sum(list(map(index.weight_map.get, header.names)).count(header.file) for header in headers)
    # Every listed name is in its place and none is over: then none is missing, misplaced, unlisted or in two shards.
    if not agreeing == len(index.weight_map) == sum(len(header) for header in headers):
        check_unique(headers)
        _explain(index, {name: header.file for header in headers for name in header.names})
    total = sum(header.data_bytes for header in headers)
    if index.total_size is None or index.total_size == total:
        return []
    claim = shown(index.total_size)
    return [f"{shown(index.file)}: metadata.total_size is {claim}; the tensors take {total:,} bytes."]


def check_unique(headers: Sequence[Header]) -> None:
    """Raises DuplicateTensorError when two shards hold a tensor of the same name."""
    if len(headers) < 2 or len(set().union(*(header.names for header in headers))) == sum(map(len, headers)):
        return
    home: dict[str, str] = {}
    for header in headers:
        for name in header.names:
            if name in home:
                problem = f"also lies in {shown(home[name])}."
                raise errors.DuplicateTensorError(problem, file=header.file, tensor=name)
        home.update(dict.fromkeys(header.names, header.file))


def _explain(index: Index, found: dict[str, str]) -> None:
    for name, shard in index.weight_map.items():
        if name not in found:
            problem = f"is listed in {shown(shard)}, but no shard holds it."
            raise errors.MissingTensorError(problem, file=index.file, tensor=name)
        if found[name] != shard:
            problem = f"is listed in {shown(shard)}, but lies in {shown(found[name])}."
            raise errors.MisplacedTensorError(problem, file=index.file, tensor=name)
    name = next(name for name in found if name not in index.weight_map)
    problem = f"lies in {shown(found[name])}, but is not listed."
    raise errors.UnlistedTensorError(problem, file=index.file, tensor=name)
