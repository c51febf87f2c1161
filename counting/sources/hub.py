"""Open a checkpoint on the Hub: the revision pinned to a commit first, then headers only.

Sharded, on main: one request for all headers where the server offers it. Otherwise the index, and per shard one range
request sized from the names in the index, and a second for the rest if that fell short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moegauge.counting import errors
from moegauge.counting.headers.header import LENGTH_BYTES, Header
from moegauge.counting.sources import gguf, selection
from moegauge.counting.sources.checkpoint import DOCUMENTS, Checkpoint, parse_document
from moegauge.counting.sources.folder import open_folder
from moegauge.counting.sources.index import Index, check_shard_name, check_unique, parse_index, reconcile
from moegauge.counting.sources.remote import MAIN, SPARE_BYTES, Remote
from moegauge.limits import DOCUMENT_LIMIT_BYTES, INDEX_LIMIT_BYTES
from moegauge.text import shown

FIRST_RANGE_BYTES = 65_536  # of a file of unknown content; 300 to 600 tensors
# Bytes of one header entry beyond the tensor's name, until the first shard has been seen: dtype, shape, two offsets.
ENTRY_BYTES = 82


def open_repo(
    repo: str,
    revision: str | None,
    *,
    weights: str = "",
    thorough: bool = False,
    deadline_s: float | None = None,
) -> Checkpoint:
    """Open the checkpoint of a Hub repo without downloading weights.

    Args:
        repo: `org/name`, or a name without organisation.
        revision: branch, tag, `refs/pr/N` or commit; `main` when None.
        weights: the index or file to count when there are several.
        thorough: read every header byte by byte even where the Hub offers them decoded.
        deadline_s: what all requests may take together, in seconds; 60 times HF_HUB_DOWNLOAD_TIMEOUT when None.
    Raises:
        SourceError: the subclass that names the fault; HubError and below for the network.
    """
    try:
        remote = Remote(repo, revision or MAIN, deadline_s)
    except errors.OfflineError:
        snapshot = _snapshot(repo, revision)
        if snapshot is None:
            raise
        return replace(open_folder(snapshot, name=repo, weights=weights), kind="hub", commit=snapshot.name)
    if gguf.wanted(remote.names, weights):
        files = gguf.choose(remote.names, where=repo, weights=weights)
        model = gguf.open_model("hub", repo, remote.commit, files, remote.gguf_header)
        remote.keep()
        return replace(model, requests=remote.transfer.requests, wire_bytes=remote.transfer.wire_bytes)
    chosen = selection.select(remote.names, where=repo, weights=weights)
    warnings = list(chosen.warnings)
    if chosen.index:
        headers, more = _sharded(remote, chosen, thorough)
        warnings += more
    else:
        for file in chosen.files:
            check_shard_name(file, file=repo)
        headers = remote.headers(dict.fromkeys(chosen.files, FIRST_RANGE_BYTES))
        check_unique(headers)
    documents = {
        file: parse_document(remote.document(file, DOCUMENT_LIMIT_BYTES), file=file)
        for file in DOCUMENTS
        if file in remote.names
    }
    remote.keep()
    return Checkpoint(
        "hub",
        repo,
        remote.commit,
        headers,
        documents,
        remote.transfer.requests,
        remote.transfer.wire_bytes,
        warnings,
        remote.read_range,
    )


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of a repo that huggingface_hub has downloaded, weights and all; None when it has not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):  # none, a name it has no place for, an unreadable one
        return None


def _sharded(remote: Remote, chosen: selection.Selection, thorough: bool) -> tuple[list[Header], list[str]]:
    index_file = chosen.index

    def accept(headers: list[Header], total_size: int | None) -> tuple[list[Header], list[str]]:
        """Decoded headers, if they are the whole checkpoint."""
        check_unique(headers)
        listed = Index(index_file, {}, [header.file for header in headers])
        warnings = selection.check_unlisted(listed, remote.names, rival=chosen.rival, where=remote.repo)
        total = sum(header.data_bytes for header in headers)
        if total_size is not None and total_size != total:
            raise errors.TransferError(f"{total:,} bytes of tensors, {total_size:,} in the index.", file=remote.repo)
        unchecked = "headers came decoded from the Hub; repeated keys and the index are unchecked without --thorough."
        return headers, [f"{remote.repo}: {unchecked}", *warnings]

    found = None if thorough else remote.decoded_headers(index_file, accept)
    if found is not None:
        return found
    index = parse_index(remote.document(index_file, INDEX_LIMIT_BYTES), file=index_file, names=remote.names)
    for shard in index.shards:
        if shard not in remote.sizes:
            problem = f"names the shard {shown(shard)}, which is not in the repo."
            raise errors.MissingShardError(problem, file=index.file, advice="The repo is incomplete.")
    warnings = selection.check_unlisted(index, remote.names, rival=chosen.rival, where=remote.repo)
    headers = remote.headers(_first_ranges(index))
    return headers, warnings + reconcile(index, headers)


def _first_ranges(index: Index) -> dict[str, int]:
    """shard -> bytes its header is likely to take, from the names the index puts there."""
    ranges = dict.fromkeys(index.shards, LENGTH_BYTES + SPARE_BYTES)
    for name, shard in index.weight_map.items():
        ranges[shard] += len(name) + ENTRY_BYTES
    return ranges
