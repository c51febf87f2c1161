"""Choose which files in a folder or repo are the checkpoint: one index and its shards, or one file."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from moegauge.counting import errors
from moegauge.counting.sources.index import SUFFIX, Index
from moegauge.limits import SHARD_LIMIT
from moegauge.text import shown

INDEX_SUFFIX = ".safetensors.index.json"
_NUMBERED = re.compile(r"(?P<stem>.*?)-?(?P<number>\d{1,9})-of-(?P<count>\d{1,9})\.safetensors", re.ASCII | re.DOTALL)
# One rank's slice of a tensor-parallel save: grok-2's `-TP-003`, DeepSeek's `model3-mp8`, Megatron's `mp_rank_03`.
_RANK = re.compile(
    r"(?:^|[-_.])(?:TP[-_]?\d+|(?:tp|mp)_rank_?\d+|tp\d+|model\d+-mp\d+|rank[-_]?\d+)(?=[-_.])", re.IGNORECASE
)
# The order in which names are tried: transformers' own, then Mistral's native layout.
_PREFERRED = ("model", "consolidated")


@dataclass(frozen=True, slots=True)
class Selection:
    """Either `index` names the index file, or `files` the weight files themselves.

    Attributes:
        rival: a whole file beside the index, `model.safetensors`: a second checkpoint unless the index lists it.
    """

    index: str = ""
    rival: str = ""
    files: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)


def select(names: Collection[str], *, where: str, weights: str = "") -> Selection:
    """Choose among the file names of a folder or repo (its top level only).

    Args:
        names: the file names there.
        where: the folder or repo, for messages.
        weights: the index or safetensors file the user asks for; empty to choose.
    Raises:
        NoSafetensorsError: nothing to count.
        AmbiguousWeightsError: two checkpoints lie there and neither is the obvious one.
        MissingShardError: numbered shards without an index, one of them absent.
    """
    present = set(names)
    if weights:
        return _asked_for(weights, present, where)
    for stem in _PREFERRED:
        single, index = stem + SUFFIX, stem + INDEX_SUFFIX
        if index in present:
            rival = single if single in present else ""
            return Selection(index=index, rival=rival, warnings=_others(present, stem, where))
        if single in present:
            return Selection(files=(single,), warnings=_others(present, stem, where) + _beside(single, present, where))
    indexes = sorted(name for name in present if name.endswith(INDEX_SUFFIX))
    if indexes:
        if len(indexes) > 1:
            raise _ambiguous(indexes, where)
        return Selection(index=indexes[0])
    files = sorted(name for name in present if name.endswith(SUFFIX))
    if not files:
        raise _nothing(present, where)
    if len(files) == 1:
        return Selection(files=(files[0],))
    sliced = [name for name in files if _RANK.search(name)]
    if len(sliced) > 1:
        problem = f"holds tensor-parallel slices, one file a rank, of the same tensors: {_some(sliced)}."
        advice = "Count a checkpoint whose slices are merged; one rank's file alone is no model."
        raise errors.SlicedWeightsError(problem, file=where, advice=advice)
    warning = f"{shown(where)}: no index; all numbered shards are counted."
    return Selection(files=_numbered_set(files, where), warnings=[warning])


def check_unlisted(index: Index, names: Collection[str], *, rival: str, where: str) -> list[str]:
    """Shards of the index's own set must all be listed; other safetensors files are worth a warning.

    Raises:
        AmbiguousWeightsError: the index does not list `rival`, so two checkpoints lie there.
        UnlistedShardError: e.g. `model-00003-of-00004.safetensors` lies there, of a set the index lists in part.
    """
    listed = set(index.shards)
    if rival and rival not in listed:
        raise _ambiguous([rival, index.file], where)
    sets = {(m["stem"], m["count"]) for m in map(_NUMBERED.fullmatch, index.shards) if m}
    extra = sorted(name for name in names if name.endswith(SUFFIX) and name not in listed)
    for name in extra:
        match = _NUMBERED.fullmatch(name)
        if match and (match["stem"], match["count"]) in sets:
            raise errors.UnlistedShardError(f"does not list {shown(name)}, which is there.", file=index.file)
    if not extra:
        return []
    return [f"{shown(index.file)}: not counted, not listed: {_some(extra)}."]


def _asked_for(weights: str, present: set[str], where: str) -> Selection:
    if weights not in present:
        problem = f"there is no '{shown(weights)}'."
        raise errors.TargetNotFoundError(problem, file=where, advice=f"There: {_some(sorted(present))}.")
    if weights.endswith(INDEX_SUFFIX):
        return Selection(index=weights)
    if not weights.endswith(SUFFIX):
        advice = f"Name a {SUFFIX} file or its index."
        raise errors.NoSafetensorsError(f"'{shown(weights)}' holds no weights.", file=where, advice=advice)
    warnings = []
    if _RANK.search(weights) or any(_RANK.search(name) for name in present if name.endswith(SUFFIX)):
        warnings = [f"{shown(weights)}: its folder holds tensor-parallel slices; one file is a part of the model."]
    return Selection(files=(weights,), warnings=warnings)


def _ambiguous(choices: list[str], where: str) -> errors.AmbiguousWeightsError:
    problem = f"holds more than one checkpoint: {_some(choices)}."
    return errors.AmbiguousWeightsError(problem, file=where, advice=f"Choose one: --weights {choices[0]}")


def _others(present: set[str], stem: str, where: str) -> list[str]:
    """A second copy under another well-known name is usual (Mistral ships two) and worth one line."""
    other = [s for s in _PREFERRED if s != stem and (s + SUFFIX in present or s + INDEX_SUFFIX in present)]
    return [f"{shown(where)}: '{name}' weights lie there too; not counted." for name in other]


def _beside(single: str, present: set[str], where: str) -> list[str]:
    """Other weight files beside a whole one: a drafter, an adapter, a second precision; left out, and said."""
    known = {stem + SUFFIX for stem in _PREFERRED}
    other = sorted(name for name in present if name.endswith(SUFFIX) and name not in known)
    return [f"{shown(where)}: {single} is counted; beside it and not counted: {_some(other)}."] if other else []


def _nothing(present: set[str], where: str) -> errors.NoSafetensorsError:
    weights = sorted(
        name for name in present if name.endswith((".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".npz"))
    )
    near = sorted(name for name in present if name.strip().lower().endswith(SUFFIX))
    if near:
        problem, advice = f"has no .safetensors file, but {_some(near)}.", "Give it a plain .safetensors name."
    elif weights:
        problem, advice = f"has no .safetensors file; it holds {_some(weights)}.", "Count its safetensors release."
    else:
        problem, advice = "has no .safetensors file.", "Give the folder the weights lie in, or a Hub repo: org/name."
    return errors.NoSafetensorsError(problem, file=where, advice=advice)


def _numbered_set(files: list[str], where: str) -> tuple[str, ...]:
    matches = [_NUMBERED.fullmatch(name) for name in files]
    sets = {(m["stem"], int(m["count"])) if m else None for m in matches}
    if len(sets) != 1 or None in sets:
        raise _ambiguous(files, where)
    count = int(next(m for m in matches if m)["count"])
    numbers = {int(m["number"]) for m in matches if m}
    wanted = set(range(1, count + 1)) if count <= SHARD_LIMIT else {0}
    missing = sorted(wanted - numbers)
    if missing or len(files) != count:
        lacking = f"number {missing[0]} is absent" if missing else "a number stands twice"
        raise errors.MissingShardError(f"{len(files)} of {count} shards and no index; {lacking}.", file=where)
    return tuple(files)


def _some(names: list[str]) -> str:
    listed = ", ".join(shown(name) for name in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3:,} more"
