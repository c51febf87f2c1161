"""Write checkpoints as sparse files: real headers, lengths and shards, no byte of data allocated."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from moegauge.errors import CheckpointError

DTYPE_BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4, "U8": 1}


class Tensor(NamedTuple):
    """One entry of a header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        size = DTYPE_BYTES[self.dtype]
        for n in self.shape:
            size *= n
        return size


def write_sparse(folder: Path, listed: list[Tensor], config: dict[str, Any], shards: int = 1) -> int:
    """Write `folder` as a checkpoint of sparse shards, with index and config.json.

    Args:
        folder: made if absent; must hold no safetensors file.
        listed: the tensors, in the order of the files.
        config: the config.json to write beside them.
        shards: files to spread the tensors over, of about equal size.

    Returns:
        the bytes of data the files claim, none of them allocated.

    Raises:
        CheckpointError: the folder already holds a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: already holds safetensors files.", advice="Name an empty folder.")
    total = sum(t.bytes for t in listed)
    groups: list[list[Tensor]] = [[] for _ in range(shards)]
    done = 0
    for tensor in listed:
        groups[done * shards // total].append(tensor)
        done += tensor.bytes
    groups = [group for group in groups if group]
    placed: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        single = len(groups) == 1
        name = "model.safetensors" if single else f"model-{number:05}-of-{len(groups):06}.safetensors"
        _write_shard(folder / name, group)
        placed.update((t.name, name) for t in group)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return total


def _write_shard(path: Path, group: list[Tensor]) -> None:
    """One sparse file: length, header, and as much nothing as the header promises."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in group:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
