"""Checkpoint errors: one class for every way a checkpoint can be wrong.

Each error knows its file, its tensor where there is one, and the byte of the file where that is known; names are
someone else's bytes: escaped and cut before they are shown.
"""

from __future__ import annotations

from moegauge.errors import CheckpointError
from moegauge.text import shown

REDOWNLOAD = "Download the file again, or ask whoever made it for a new one."


class SourceError(CheckpointError):
    """A checkpoint that cannot be read as one: base of everything below.

    Args:
        problem: what is wrong, without the file's name.
        file: the file it is wrong in, as it is named in its folder or repo.
        tensor: the tensor concerned, if any.
        byte: offset in the file, if known.
        advice: the next step; a default per class when empty.
    """

    default_advice = REDOWNLOAD

    def __init__(
        self, problem: str, *, file: str, tensor: str | None = None, byte: int | None = None, advice: str = ""
    ) -> None:
        where = f", byte {byte:,}" if byte is not None else ""
        what = f"tensor '{shown(tensor)}' " if tensor is not None else ""
        super().__init__(f"{shown(file)}{where}: {what}{problem}", advice=advice or self.default_advice)
        self.problem = problem
        self.file = file
        self.tensor = tensor
        self.byte = byte


# The header of one safetensors file.


class HeaderError(SourceError):
    """A file whose safetensors header is refused."""


class TooShortError(HeaderError):
    """Fewer bytes than the 8-byte length and the smallest header take."""


class HeaderTooLargeError(HeaderError):
    """The header claims more than 100,000,000 bytes, or holds more values than a checkpoint can need."""


class TruncatedError(HeaderError):
    """The file ends inside its own header."""


class SizeMismatchError(HeaderError):
    """The file's size is not 8 + header + data: cut short, or something is appended."""


class NotSafetensorsError(HeaderError):
    """Another kind of file altogether: Git LFS pointer, pickle, zip, GGUF, HTML page.

    Attributes:
        kind: what it is, e.g. 'a Git LFS pointer'.
    """

    kind = ""


class NotUtf8Error(HeaderError):
    """The header is not UTF-8, or holds a lone surrogate."""


class NotJsonError(HeaderError):
    """The header is not one JSON document."""


class NestingError(HeaderError):
    """The header nests deeper than any reader needs to follow."""


class NotAnObjectError(HeaderError):
    """The header's outermost value is not a JSON object."""


class DuplicateKeyError(HeaderError):
    """A key stands twice in one object: two readers would see two different files."""


class BadMetadataError(HeaderError):
    """`__metadata__` is not an object of strings, nor null."""


class BadEntryError(HeaderError):
    """A tensor's entry is not an object, lacks a field, or a field has the wrong type."""


class UnknownDtypeError(HeaderError):
    """A dtype safetensors does not define; its width is never guessed."""

    default_advice = "If the dtype is real, this version of moegauge is too old for the file."


class BadShapeError(HeaderError):
    """A shape with a dimension that is not a whole number from 0 to 2^64 - 1, or with more than 64 dimensions."""


class ShapeOverflowError(HeaderError):
    """A shape whose running product, or its size in bits, passes 2^64 - 1."""


class BadOffsetsError(HeaderError):
    """`data_offsets` that are not two whole numbers in order."""


class MisalignedError(HeaderError):
    """A tensor of a sub-byte dtype whose elements do not fill whole bytes."""


class TensorSizeError(HeaderError):
    """A tensor whose offsets span another number of bytes than its shape and dtype need."""


class HoleError(HeaderError):
    """Bytes of the data no tensor owns."""


class OverlapError(HeaderError):
    """Bytes of the data two tensors claim."""


# The index of a sharded checkpoint, and the set of its shards.


class IndexFileError(SourceError):
    """An index (`*.safetensors.index.json`) that is refused, or that its shards contradict."""


class BadIndexError(IndexFileError):
    """The index is not JSON, or its `weight_map` is missing, not an object, or holds something other than strings."""


class DuplicateIndexKeyError(IndexFileError):
    """A key stands twice in the index."""


class ShardNameError(IndexFileError):
    """A shard's name leaves the folder, names a device or a URL, or is no `.safetensors` name."""


class TooManyShardsError(IndexFileError):
    """More than 10,000 shards."""


class MissingShardError(IndexFileError):
    """The index names a shard that is not there."""


class UnlistedShardError(IndexFileError):
    """A shard of the set lies in the folder, but the index does not name it."""


class MisplacedTensorError(IndexFileError):
    """The index puts a tensor in one shard and it lies in another."""


class MissingTensorError(IndexFileError):
    """The index names a tensor no shard holds."""


class UnlistedTensorError(IndexFileError):
    """A shard holds a tensor the index does not name."""


class DuplicateTensorError(IndexFileError):
    """Two shards hold a tensor of the same name."""


# Where bytes come from: folders and files.


class TargetNotFoundError(SourceError):
    """No such folder, file or repo."""


class NoSafetensorsError(SourceError):
    """A folder or repo without safetensors weights."""


class NotRegularFileError(SourceError):
    """A FIFO, device, socket or folder where a file is expected."""


class EscapingLinkError(SourceError):
    """A symlink that leaves the checkpoint's folder."""


class FileChangedError(SourceError):
    """The file changed while it was read."""

    default_advice = "Count again when nothing writes to the folder."


class UnreadableError(SourceError):
    """The system refused to read the file."""


class BadConfigError(SourceError):
    """A JSON file beside the weights (config.json, ...) that cannot be used."""


class AmbiguousWeightsError(SourceError):
    """Two checkpoints side by side, and nothing says which is meant."""


class SlicedWeightsError(SourceError):
    """Files that each hold one rank's slice of the same tensors."""


class AdapterError(SourceError):
    """The tensors are an adapter's: updates of another model's, not a model."""


# The Hub. `file` is the repo id here, with the file's name after it where one is concerned.


class HubError(SourceError):
    """The Hub, or the way to it, failed: base of everything below."""

    default_advice = "Try again later."


class RepoNotFoundError(HubError):
    """No such repo, or it is private and we are nobody."""


class RevisionNotFoundError(HubError):
    """The repo has no such branch, tag or commit."""


class GatedRepoError(HubError):
    """The repo asks for its terms to be accepted first."""


class UnauthorizedError(HubError):
    """The token is not valid, or may not read this repo."""


class RateLimitedError(HubError):
    """Still 429 after every retry."""


class HubUnreachableError(HubError):
    """No connection, no answer in time, or the connection broke, after every retry."""


class DeadlineError(HubError):
    """An answer, or all answers about a repo together, took longer than they may."""

    default_advice = "Raise HF_HUB_DOWNLOAD_TIMEOUT (seconds) or --deadline on a slow line."


class MissingFileError(HubError):
    """404 for one file, or for something this server does not offer."""


class HubStatusError(HubError):
    """Any other HTTP status that is no success."""


class TransferError(HubError):
    """An answer that is not what was asked for: another range, too few bytes, too many, compressed, not JSON."""


class OfflineError(HubError):
    """HF_HUB_OFFLINE is set and what is needed is not in the cache."""
