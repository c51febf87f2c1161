"""The packed order of the Triton kernels, and the packed arithmetic of their inline assembly over every code point."""

from __future__ import annotations

import numpy as np
import pytest

from moegauge.formats import get_format
from moegauge.kernels import codes
from moegauge.kernels.triton.launching.launch import WARPS
from moegauge.kernels.triton.lowering import layout
from moegauge.kernels.triton.lowering.configuration import CONFIGURATIONS, Configuration, cut, default_for, share

FORMATS = sorted(layout.TILED_FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_packing_is_a_permutation_of_the_same_size(name):
    bits, columns = get_format(name).element_bits, 3 * layout.tile_columns(name)
    original = np.random.default_rng(1).integers(0, 1 << bits, (32, columns)).astype(np.uint16)
    packed = layout.encode(original, name)
    assert packed.nbytes == get_format(name).weight_bytes(32, columns)
    assert (layout.decode(packed, name, 32, columns) == original).all()


@pytest.mark.parametrize("name", [n for n in FORMATS if get_format(n).scale_bits])
def test_scales_keep_their_size_and_come_back(name):
    columns = 6 * layout.tile_columns(name)
    size = get_format(name).scale_bytes(32, columns) - get_format(name).tensor_scale_bits // 8
    scales = np.random.default_rng(2).integers(0, 256, size).astype(np.uint8)
    packed = layout.pack_scales(scales, name, 32, columns)
    assert packed.nbytes == size
    assert (layout.unpack_scales(packed, name, 32, columns) == scales).all()


# -- the instructions, one by one, on numpy words: what the assembly of `decode.py` says


def halves(words):
    """The two bfloat16 of each word as float64."""
    low = codes.decode_bf16((words & 0xFFFF).astype(np.uint16))
    return np.stack([low, codes.decode_bf16((words >> 16).astype(np.uint16))], axis=-1)


def fma(a, b, c):
    """fma.rn.bf16x2: a b + c in each half, one rounding, subnormals kept (PTX ISA)."""
    exact = halves(a) * halves(np.uint32(b)) + halves(np.asarray(c, np.uint32))
    rounded = codes.encode_bf16(exact).astype(np.uint32)
    assert (codes.decode_bf16(rounded.astype(np.uint16)) == exact).all(), "a product or sum here must be exact"
    return rounded[..., 0] | (rounded[..., 1] << 16)


def fp4(w):
    turn = lambda n: (w << np.uint32(n)) | (w >> np.uint32(32 - n))  # noqa: E731
    d = ((w << np.uint32(6)) & 0x80C080C0) | ((w >> np.uint32(2)) & 0x01000100)
    raw = [w & 0x81C081C0, turn(4) & 0x81C081C0, turn(10) & 0x81C081C0, d]
    return [fma(r, 0x7E807E80, 0x80008000) for r in raw]


def int4(w):
    return [fma(((w >> np.uint32(4 * i)) & 0x000F000F) | 0x43004300, 0x3F803F80, 0xC308C308) for i in range(4)]


def fp8(w):
    b = ((w << np.uint32(4)) & 0x80F080F0) | ((w >> np.uint32(4)) & 0x07000700)
    return [fma(w & 0x87F087F0, 0x7B807B80, 0x80008000), fma(b, 0x7B807B80, 0x80008000)]


def int8(w):
    return [
        fma(
            ((w >> np.uint32(n)) & 0x00800080) | 0x43004300, 0xBF80BF80, ((w >> np.uint32(n)) & 0x007F007F) | 0x43004300
        )
        for n in (0, 8)
    ]


VALUES = {
    "mxfp4": (fp4, codes.E2M1),
    "int4": (int4, np.arange(-8.0, 8.0)),
    "fp8": (fp8, codes.E4M3),
    "int8": (int8, np.arange(256).astype(np.uint8).view(np.int8).astype(np.float64)),
}


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_code_point_in_every_place_of_a_word_decodes_exactly(name):
    instructions, table = VALUES[name]
    columns = layout.tile_columns(name)
    known = np.flatnonzero(np.isfinite(table))
    # Each tile holds one code everywhere but where its neighbours differ: every code passes through every place.
    rng = np.random.default_rng(3)
    original = rng.choice(known, (16, 512 * columns)).astype(np.uint16)
    words = layout.encode(original, name).view(np.uint32).reshape(-1, 8, 4, 2, 2)  # tile r c h v
    pairs = np.stack([halves(p) for p in instructions(words)], axis=-2)  # tile r c h v i p
    steps = columns // 16
    got = pairs.reshape(-1, 8, 4, 2, steps, 2, 2).transpose(3, 1, 0, 4, 2, 5, 6).reshape(16, -1)
    assert (got == table[original]).all()
    counts = np.bincount(original.reshape(-1), minlength=len(table))[known]
    assert counts.min() > 100


def test_a_cut_covers_every_tile_once():
    for name in FORMATS:
        for tiles in range(1, 40):
            plan = cut(name, tiles * layout.tile_columns(name))
            assert plan.tiles == tiles
            turn = plan.chunk * plan.across
            assert (plan.length - 1) * turn < tiles <= plan.length * turn
            assert (plan.ragged == 0) == (tiles == plan.length * turn)
            assert (plan.ragged < 2) == (tiles % plan.chunk == 0)
            assert WARPS % plan.across == 0
            chunks = -(-tiles // plan.chunk)
            assert plan.length * plan.across <= chunks * 9 / 8  # of a program's warps, an eighth idles at most
            assert plan.chunk == 4 or name not in ("fp8", "int4_g128")  # whose scales belong to four tiles


def test_no_run_of_turns_is_shared_between_more_programs_than_its_depth():
    for total in (1, 7, 96, 1000):
        for turns in (1, 2, 6):
            shares = share(total, Configuration("c", 5, turns, ""), processors=3, most=4)
            assert shares.programs == max(1, min(12, total // turns))  # four of the five on each of three
            each, more = divmod(total, shares.programs)
            owner = np.repeat(np.arange(shares.programs), [each + (p < more) for p in range(shares.programs)])
            for length in (n for n in (1, 2, 3, 8, 31, total) if n <= total):
                parts = owner[length - 1 :] - owner[: total - length + 1] + 1
                assert parts.max() <= shares.depth(length)
                assert more or parts.max() == shares.depth(length) or length == total


def test_every_device_class_has_a_documented_configuration():
    assert all(c.why for c in CONFIGURATIONS.values())
    assert default_for((9, 0)).name == "wide"
    assert default_for((10, 3)) is default_for((10, 0))


@pytest.mark.parametrize("name", FORMATS)
def test_the_kernels_traits_are_those_of_the_formats_table(name):
    formats = pytest.importorskip("moegauge.kernels.triton.device.formats")
    row = get_format(name)
    assert formats.traits(name) == (row.element, row.scale, row.scale_rows, row.scale_columns, row.tensor_scale)
    assert formats.tile_columns(name) == layout.tile_columns(name)
    assert formats.scale_tiles(name) * formats.tile_columns(name) == layout.scale_columns(name)
