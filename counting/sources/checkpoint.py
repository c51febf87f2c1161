"""An opened checkpoint: all headers, validated and reconciled, and the small JSON files beside the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moegauge.counting import errors
from moegauge.counting.headers.header import Header
from moegauge.limits import DOCUMENT_LIMIT_BYTES, DOCUMENT_NESTING, READ_LIMIT_BYTES

# Read when they are there; each is at most DOCUMENT_LIMIT_BYTES.
DOCUMENTS = (
    "config.json",
    "hf_quant_config.json",
    "params.json",
    "quantize_config.json",
    "quant_config.json",
    "adapter_config.json",
)


@dataclass(slots=True)
class Checkpoint:
    """What a counter needs of a checkpoint, wherever it lies.

    Attributes:
        kind: 'hub', 'folder' or 'file'.
        name: repo id or path, as asked for.
        commit: the 40-digit commit of a Hub repo, None elsewhere.
        headers: one validated header per shard, sorted by file name.
        documents: the parsed JSON files of `DOCUMENTS` that exist, by file name.
        requests: HTTP requests made, retries included; 0 when everything was local or cached.
        wire_bytes: bytes of the bodies received for headers and indexes.
        warnings: what was accepted but is worth a line.
    """

    kind: str
    name: str
    commit: str | None
    headers: list[Header]
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: int = 0
    wire_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    reader: Callable[[Header, int, int], bytes] | None = None

    def __post_init__(self) -> None:
        for header in self.headers:
            self.warnings.extend(header.warnings)

    @property
    def may_be_part(self) -> bool:
        """Whether other shards may lie elsewhere: one safetensors file was named. A GGUF says whether it is split."""
        return self.kind == "file" and not self.headers[0].file.lower().endswith(".gguf")

    @property
    def config(self) -> dict[str, Any] | None:
        """config.json, None when there is none."""
        return self.documents.get("config.json")

    @property
    def quant_config(self) -> dict[str, Any] | None:
        """hf_quant_config.json (nvidia-modelopt), None when there is none."""
        return self.documents.get("hf_quant_config.json")

    @property
    def header_bytes(self) -> int:
        """Bytes of all headers, lengths included."""
        return sum(header.header_bytes for header in self.headers)

    @property
    def tensors(self) -> int:
        """Tensors of all shards."""
        return sum(len(header) for header in self.headers)

    def read_bytes(self, shard: int, tensor: int) -> bytes:
        """The stored bytes of one tiny tensor, at most 4,096: `weight_shape` and its like are data, not header.

        Args:
            shard: position in `headers`; `tensor`: position in that header's lists.
        Raises:
            SourceError: the tensor is larger, or its bytes cannot be had (offline, changed file).
        """
        header = self.headers[shard]
        begin, end = header.offsets[tensor]
        if end - begin > READ_LIMIT_BYTES or self.reader is None:
            problem = f"has {end - begin:,} bytes; only tensors up to {READ_LIMIT_BYTES:,} are ever read."
            raise errors.UnreadableError(problem, file=header.file, tensor=header.names[tensor], advice="Report this.")
        return self.reader(header, header.header_bytes + begin, end - begin)


def parse_document(raw: bytes, *, file: str) -> dict[str, Any]:
    """One of `DOCUMENTS`. As Python's json reads it, NaN and Infinity included: transformers writes them.

    Raises:
        BadConfigError: too large, not JSON, or not an object.
    """
    if len(raw) > DOCUMENT_LIMIT_BYTES:
        raise errors.BadConfigError(f"{len(raw):,} bytes; the limit is {DOCUMENT_LIMIT_BYTES:,}.", file=file)
    try:
        document = json.loads(raw)
    except RecursionError:
        raise errors.BadConfigError("nests deeper than any reader follows.", file=file) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise errors.BadConfigError(f"is not JSON: {error}.", file=file) from None
    if not isinstance(document, dict):
        raise errors.BadConfigError("its outermost value is not an object.", file=file)
    _check_nesting(document, file)
    return document


def _check_nesting(document: dict[str, Any], file: str) -> None:
    """Whoever reads a config goes down its sections one call each, so their depth is limited here."""
    level: list[Any] = [document]
    for _ in range(DOCUMENT_NESTING):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise errors.BadConfigError(f"nests deeper than {DOCUMENT_NESTING} levels.", file=file)
