"""Folders and indexes a scanner must survive: shards that escape, are absent, doubled or no files; false indexes.

The cases of the network are in tests/counting/sources/test_hub.py.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegauge.counting import count, errors
from moegauge.counting.headers import header
from moegauge.counting.sources import folder, index
from moegauge.counting.sources.open import open_checkpoint

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def weights(*names: str, size: int = 4) -> bytes:
    """A valid file with one-dimensional F32 tensors of `size` bytes each."""
    entries = {
        name: {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(len(names) * size)


def write_index(place: Path, weight_map: Any, **more: Any) -> None:
    (place / INDEX).write_text(json.dumps({"metadata": {"total_size": 12}, "weight_map": weight_map, **more}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkpoint of two shards: a1 and a2 in the first, b1 in the second."""
    here = tmp_path / "checkpoint"
    here.mkdir()
    (here / A).write_bytes(weights("a1", "a2"))
    (here / B).write_bytes(weights("b1"))
    write_index(here, {"a1": A, "a2": A, "b1": B})
    return here


def refused(place: Path, error: type[errors.SourceError], **options: Any) -> errors.SourceError:
    with pytest.raises(error) as caught:
        open_checkpoint(str(place), **options)
    assert type(caught.value) is error
    assert caught.value.advice
    assert str(caught.value).isprintable()
    return caught.value


def test_sound_folder(place: Path) -> None:
    checkpoint = open_checkpoint(str(place))
    assert [header.file for header in checkpoint.headers] == [A, B]
    assert (checkpoint.kind, checkpoint.tensors, checkpoint.warnings, checkpoint.commit) == ("folder", 3, [], None)


# 1: weight_map missing, a list, or with values that are no strings.


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        "",
        '{"weight_map": []}',
        '{"weight_map": null}',
        '{"weight_map": {"a1": 1}}',
        '{"weight_map": {"a1": null}}',
        '{"weight_map": {"a1": ["x"]}}',
        '{"weight_map": {"a1": "' + A + '",}}',
        '{"weight_map": ' + "[" * 100_000,
        b"\xff\xfe",
        b'{"weight_map": {"\xff": "x.safetensors"}}',
    ],
    ids=str,
)
def test_index_that_is_none(place: Path, text: str | bytes) -> None:
    (place / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(place, errors.BadIndexError).file == INDEX


# 2 and 3: shard names that leave the folder, on any system. 4: shard names that are no .safetensors names.

ESCAPES = ["../x.safetensors", "/tmp/x.safetensors", "C:x.safetensors", r"\\host\share\x.safetensors"]
ESCAPES += [r"..\x.safetensors", "a/../../x.safetensors", "./x.safetensors", "a//x.safetensors", ".hidden.safetensors"]
STRANGE = ["http://host/x.safetensors", "file:x.safetensors", "~/x.safetensors", "NUL.safetensors", "con.safetensors"]
STRANGE += ["sub/COM1.safetensors", "-rf.safetensors", "$HOME.safetensors", "x\0.safetensors", "x\n.safetensors"]
OTHERS = ["x.bin", "x.SAFETENSORS", "x.safetensors ", "x.safetensors\n", "", ".safetensors", "safetensors", "x" * 2000]


@pytest.mark.parametrize("name", [*ESCAPES, *STRANGE, *OTHERS], ids=ascii)
def test_shard_name(place: Path, name: str) -> None:
    write_index(place, {"a1": A, "a2": A, "b1": name})
    refused(place, errors.ShardNameError)


def test_shard_in_a_subfolder(place: Path) -> None:
    (place / "part").mkdir()
    (place / B).rename(place / "part" / B)
    write_index(place, {"a1": A, "a2": A, "b1": f"part/{B}"})
    assert open_checkpoint(str(place)).tensors == 3


# 5: listed and absent; there and unlisted.


def test_shard_listed_but_absent(place: Path) -> None:
    (place / B).unlink()
    assert B in str(refused(place, errors.MissingShardError))


def test_shard_there_but_unlisted(place: Path) -> None:
    write_index(place, {"a1": A, "a2": A})
    assert B in str(refused(place, errors.UnlistedShardError))


def test_unrelated_file_is_worth_a_warning(place: Path) -> None:
    (place / "adapter.safetensors").write_bytes(weights("lora"))
    checkpoint = open_checkpoint(str(place))
    assert checkpoint.tensors == 3
    assert "adapter.safetensors" in checkpoint.warnings[0]


# 6: a tensor listed in A and found in B, in both, in neither; found and not listed.


def test_tensor_in_another_shard(place: Path) -> None:
    write_index(place, {"a1": A, "a2": B, "b1": B})
    error = refused(place, errors.MisplacedTensorError)
    assert error.tensor == "a2"


def test_tensor_in_two_shards(place: Path) -> None:
    (place / B).write_bytes(weights("b1", "a1"))
    assert refused(place, errors.DuplicateTensorError).tensor == "a1"


def test_tensor_in_no_shard(place: Path) -> None:
    write_index(place, {"a1": A, "a2": A, "b1": B, "b2": B})
    assert refused(place, errors.MissingTensorError).tensor == "b2"


def test_tensor_not_listed(place: Path) -> None:
    write_index(place, {"a1": A, "b1": B})
    assert refused(place, errors.UnlistedTensorError).tensor == "a2"


# 7: total_size is never a source.


@pytest.mark.parametrize("total", [0, -1, 13, "12", None, 1e30, 10**50, [], True])
def test_total_size_is_only_worth_a_warning(place: Path, total: Any) -> None:
    write_index(place, {"a1": A, "a2": A, "b1": B}, metadata={"total_size": total})
    checkpoint = open_checkpoint(str(place))
    assert sum(header.data_bytes for header in checkpoint.headers) == 12
    assert len(checkpoint.warnings) == (total is not None)


# 8: very many shards; one shard very often.


def test_too_many_shards() -> None:
    names = {f"t{i}": f"s{i}.safetensors" for i in range(index.SHARD_LIMIT + 1)}
    with pytest.raises(errors.TooManyShardsError):
        index.parse_index(json.dumps({"weight_map": names}).encode(), file=INDEX)
    names.popitem()
    assert len(index.parse_index(json.dumps({"weight_map": names}).encode(), file=INDEX).shards) == index.SHARD_LIMIT


def test_one_shard_ten_thousand_times(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(10_000)]
    (tmp_path / "model.safetensors").write_bytes(weights(*names))
    (tmp_path / "x.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")})
    )
    assert open_checkpoint(str(tmp_path), weights="x.safetensors.index.json").tensors == 10_000


# 9: keys that stand twice in the index.


@pytest.mark.parametrize(
    "text",
    [
        f'{{"weight_map": {{"a1": "{A}", "a2": "{A}", "b1": "{A}", "b1": "{B}"}}}}',
        f'{{"weight_map": {{}}, "weight_map": {{"a1": "{A}", "a2": "{A}", "b1": "{B}"}}}}',
        f'{{"metadata": {{"x": 1, "x": 1}}, "weight_map": {{"a1": "{A}", "a2": "{A}", "b1": "{B}"}}}}',
    ],
)
def test_duplicate_keys_in_the_index(place: Path, text: str) -> None:
    (place / INDEX).write_text(text)
    refused(place, errors.DuplicateIndexKeyError)


# 10: links out of the folder.


def test_link_that_leaves_the_folder(place: Path, tmp_path: Path) -> None:
    (place / B).rename(tmp_path / "elsewhere")
    (place / B).symlink_to("../elsewhere")
    assert "link" in str(refused(place, errors.EscapingLinkError))


def test_link_to_a_folder_outside(place: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (place / B).rename(tmp_path / "outside" / B)
    (place / "part").symlink_to("../outside")
    write_index(place, {"a1": A, "a2": A, "b1": f"part/{B}"})
    refused(place, errors.EscapingLinkError)


def test_link_inside_the_folder(place: Path) -> None:
    (place / B).rename(place / "blob")
    (place / B).symlink_to("blob")
    assert open_checkpoint(str(place)).tensors == 3


def test_dangling_link(place: Path) -> None:
    (place / B).unlink()
    (place / B).symlink_to("nothing")
    refused(place, errors.MissingShardError)


def test_link_that_leads_to_itself(place: Path) -> None:
    (place / B).unlink()
    (place / B).symlink_to(B)
    refused(place, errors.UnreadableError)


def test_hub_cache_links_to_its_blobs_and_no_further(place: Path, tmp_path: Path) -> None:
    """`hub/models--org--name/snapshots/<commit>/file` links to `../../blobs/<hash>`, which may link to `hub/blobs`."""
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    shared = tmp_path / "hub" / "blobs"
    for each in (snapshot, blobs, shared):
        each.mkdir(parents=True)
    for file in (A, B, INDEX):
        (place / file).rename(shared / file)
        (blobs / file).symlink_to(f"../../blobs/{file}")
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    assert open_checkpoint(str(snapshot)).tensors == 3
    (shared / A).rename(tmp_path / "outside")
    (shared / A).symlink_to("../../outside")
    refused(snapshot, errors.EscapingLinkError)


# 11: what is not a file must neither block nor be opened.


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the address of a socket holds about 100 bytes
        listener.bind(path.name)


@pytest.mark.parametrize("make", [fifo, unix_socket, Path.mkdir])
@pytest.mark.parametrize("file", [B, INDEX, "config.json"])
def test_not_a_regular_file(place: Path, make: Callable[[Path], None], file: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    (place / file).unlink(missing_ok=True)
    make(place / file)
    assert refused(place, errors.NotRegularFileError).file == file


def test_device_named_as_a_file() -> None:
    with pytest.raises(errors.NotRegularFileError):
        open_checkpoint("/dev/null")


def test_file_without_permission(place: Path, monkeypatch: Any) -> None:
    def deny(*args: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.os, "open", deny)
    assert "Permission denied" in str(refused(place, errors.UnreadableError))


# 12: a file that changes between being measured and being read.


def test_file_cut_while_it_is_read(place: Path, monkeypatch: Any) -> None:
    pread = os.pread

    def cut(descriptor: int, size: int, offset: int) -> bytes:
        if size > 64:
            os.truncate(place / A, 70)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(folder.os, "pread", cut)
    (place / INDEX).unlink()
    (place / B).unlink()
    refused(place / A, errors.FileChangedError)


def test_file_replaced_before_its_data_is_read(place: Path) -> None:
    checkpoint = open_checkpoint(str(place))
    assert checkpoint.read_bytes(0, 1) == bytes(4)
    (place / A).write_bytes(weights("a1", "a2", "a3"))
    with pytest.raises(errors.FileChangedError):
        checkpoint.read_bytes(0, 1)


def test_large_tensors_are_never_read(place: Path) -> None:
    (place / A).write_bytes(weights("a1", "a2", size=4100))
    with pytest.raises(errors.UnreadableError):
        open_checkpoint(str(place)).read_bytes(0, 0)


# 13: more than one checkpoint in a folder.


def test_single_file_and_index(place: Path) -> None:
    (place / "model.safetensors").write_bytes(weights("w"))
    assert "--weights" in str(refused(place, errors.AmbiguousWeightsError))
    assert open_checkpoint(str(place), weights="model.safetensors").tensors == 1
    assert open_checkpoint(str(place), weights=INDEX).tensors == 3
    assert open_checkpoint(str(place / INDEX)).tensors == 3


def test_index_of_a_single_file(tmp_path: Path) -> None:
    """As mlx-lm writes: the index lists `model.safetensors` itself, so there is one checkpoint."""
    (tmp_path / "model.safetensors").write_bytes(weights("w"))
    write_index(tmp_path, {"w": "model.safetensors"}, metadata={"total_size": 4})
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.tensors, checkpoint.warnings) == (1, [])
    write_index(tmp_path, {"w": "model.safetensors", "v": "model.safetensors"})
    refused(tmp_path, errors.MissingTensorError)


def test_two_indexes(place: Path) -> None:
    for name in ("fp8", "bf16"):
        (place / f"{name}.safetensors.index.json").write_bytes((place / INDEX).read_bytes())
    (place / INDEX).unlink()
    refused(place, errors.AmbiguousWeightsError)


def test_native_copy_beside_the_usual_one(place: Path) -> None:
    (place / "consolidated.safetensors").write_bytes(weights("layers.0.w"))
    checkpoint = open_checkpoint(str(place))
    assert checkpoint.tensors == 3
    assert any("consolidated" in warning for warning in checkpoint.warnings)


def test_native_copy_alone(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_bytes(weights("layers.0.w"))
    (tmp_path / "params.json").write_text('{"dim": 4}')
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.tensors, checkpoint.documents["params.json"]) == (1, {"dim": 4})


def test_numbered_shards_without_an_index(place: Path) -> None:
    (place / INDEX).unlink()
    checkpoint = open_checkpoint(str(place))
    assert checkpoint.tensors == 3
    assert "no index" in checkpoint.warnings[0]
    (place / A).unlink()
    (place / "model-00003-of-00002.safetensors").write_bytes(weights("c1"))
    assert "number 1" in str(refused(place, errors.MissingShardError))


def test_shards_without_an_index_hold_a_tensor_twice(place: Path) -> None:
    (place / INDEX).unlink()
    (place / B).write_bytes(weights("a2"))
    refused(place, errors.DuplicateTensorError)


# Targets and side files.


@pytest.mark.parametrize(
    ("files", "said"),
    [((), "no .safetensors"), (("pytorch_model.bin",), "pytorch_model.bin"), (("x.SAFETENSORS",), "x.SAFETENSORS")],
)
def test_folder_without_safetensors(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"x")
    assert said in str(refused(tmp_path, errors.NoSafetensorsError))


@pytest.mark.parametrize(
    "target", ["", "./nowhere", "no/such/folder", "model.safetensors", "a b", "org/../name", "x\0y"]
)
def test_no_such_target(target: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.TargetNotFoundError) as caught:
        open_checkpoint(target)
    assert str(caught.value).isprintable()


def test_revision_of_a_folder(place: Path) -> None:
    refused(place, errors.TargetNotFoundError, revision="main")


@pytest.mark.parametrize("text", ["[]", "{", '"x"', "[" * 100_000, b"\xff"], ids=ascii)
def test_config_that_is_none(place: Path, text: str | bytes) -> None:
    (place / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(place, errors.BadConfigError).file == "config.json"


def test_config_larger_than_any(place: Path) -> None:
    with (place / "config.json").open("wb") as stream:
        stream.truncate(11_000_000)
    refused(place, errors.UnreadableError)


# 14: sizes a stranger chooses: refused or read in good time, whatever they are.

GROUPS = {f"g{n}": {"targets": [f"re:.*x{n}.*y"], "weights": {"num_bits": 4}} for n in range(20_000)}
NAMED = {f"g{n}": {"targets": [f"model.layers.{n}.w"], "weights": {"num_bits": 4}} for n in range(20_000)}
SIZES: dict[str, tuple[dict[str, Any], bool]] = {
    "10^9 layers": ({"num_hidden_layers": 10**9}, False),
    "10,001 layers": ({"num_hidden_layers": 10_001}, False),
    "10^400 layers": ({"num_hidden_layers": 10**400}, False),
    "20,000 patterns": ({"quantization_config": {"config_groups": GROUPS}}, False),
    "20,000 names": ({"quantization_config": {"config_groups": NAMED}}, True),
    "a long word": ({"model_type": "x" * 5_000_000}, True),
    "a window of 10^18": ({"sliding_window": 10**18}, False),
}


@pytest.mark.parametrize(("config", "fine"), SIZES.values(), ids=SIZES)
def test_sizes_of_a_config(tmp_path: Path, config: dict[str, Any], fine: bool) -> None:
    (tmp_path / "model.safetensors").write_bytes(weights("model.embed_tokens.weight"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    if fine:
        assert count(str(tmp_path)).checkpoint.tensors == 1
        return
    with pytest.raises(errors.BadConfigError) as caught:
        count(str(tmp_path))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("section", ["text_config", "quant_config", "x"])
def test_sections_in_sections_in_sections(place: Path, section: str) -> None:
    for depth, fine in ((60, True), (70, False), (900, False)):
        (place / "config.json").write_text(f'{{"{section}":' * depth + "{}" + "}" * depth)
        if fine:
            open_checkpoint(str(place))
        else:
            refused(place, errors.BadConfigError)


def test_headers_of_a_checkpoint_have_one_limit(place: Path, monkeypatch: Any) -> None:
    sizes = [header.header_bytes for header in open_checkpoint(str(place)).headers]
    monkeypatch.setattr(header, "CHECKPOINT_LIMIT_BYTES", sum(sizes))
    open_checkpoint(str(place))
    monkeypatch.setattr(header, "CHECKPOINT_LIMIT_BYTES", sum(sizes) - 1)
    refused(place, errors.HeaderTooLargeError)


@pytest.mark.parametrize("name", ["1" * 400_000, "1-of-" * 100_000, "x." * 200_000, "-" * 400_000, "a/" * 200_000])
def test_long_names_cost_nothing(place: Path, name: str) -> None:
    write_index(place, {"a1": A, "a2": A, "b1": f"{name}.safetensors"})
    refused(place, errors.ShardNameError)


def test_numbers_in_names_of_any_length(tmp_path: Path) -> None:
    for name in ("model-1-of-" + "9" * 200, "model-" + "1" * 200 + "-of-2", "model-\u0661-of-2"):
        (tmp_path / f"{name}.safetensors").write_bytes(weights("w"))
    refused(tmp_path, errors.AmbiguousWeightsError)


# 15: systems that read little at a time; folders that only look like a Hub cache.


def test_short_reads_are_read_on(place: Path, monkeypatch: Any) -> None:
    """A network file system may give a byte where 64 were asked for."""
    whole = [header.names for header in open_checkpoint(str(place)).headers]
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 7), offset))
    assert [header.names for header in open_checkpoint(str(place)).headers] == whole


@pytest.mark.parametrize(
    "parts",
    ["snapshots/x", f"a/snapshots/{'0' * 40}", "models--a/snapshots/main", f"models--a/snapshots/{'0' * 39}g"],
)
def test_folder_that_only_looks_like_a_cache(tmp_path: Path, parts: str) -> None:
    snapshot = tmp_path / "hub" / "deep" / parts
    snapshot.mkdir(parents=True)
    for up in ("..", "../..", "../../..", "../../../.."):
        secret = snapshot / up / "secret.safetensors"
        secret.write_bytes(weights("secret"))
        (snapshot / "model.safetensors").unlink(missing_ok=True)
        (snapshot / "model.safetensors").symlink_to(f"{up}/secret.safetensors")
        refused(snapshot, errors.EscapingLinkError)


def test_cache_links_to_blobs_alone(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for up in ("..", "../..", "../../..", "../../../.."):
        (snapshot / up / "secret.safetensors").write_bytes(weights("secret"))
        (snapshot / "model.safetensors").unlink(missing_ok=True)
        (snapshot / "model.safetensors").symlink_to(f"{up}/secret.safetensors")
        refused(snapshot, errors.EscapingLinkError)
