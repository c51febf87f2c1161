"""ctypes mirror of native/core.h, and the translation of a `Program` into an array of its structs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p, pointer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegauge.formats import FORMATS
from moegauge.kernels.cpu.layout import interleaving
from moegauge.kernels.program import (
    Attend,
    Embed,
    ExpertsDown,
    ExpertsUp,
    GatedProduct,
    Operation,
    Place,
    Product,
    Program,
    Route,
    State,
    Vector,
    View,
    Weight,
)

# Types in the order of native/formats.h.
ELEMENTS = ("f32", "bf16", "e4m3", "int8", "int4", "e2m1")
SCALES = ("", "f32", "bf16", "e8m0", "e4m3")
FORMAT_INDEX = {name: i for i, name in enumerate(FORMATS)}
KINDS = {kind: i for i, kind in enumerate((Embed, Product, GatedProduct, Attend, State, Route, ExpertsUp, ExpertsDown))}


class CMatrix(Structure):
    """`Matrix`."""

    _fields_ = [
        *((name, c_void_p) for name in ("weights", "scales", "tensor_scale")),
        *((name, c_int64) for name in ("weight_stride", "scale_stride", "tensor_stride", "rows", "columns", "format")),
        ("interleaved", c_int64),
    ]


class CVector(Structure):
    """`Vector`."""

    _fields_ = [("data", c_void_p), ("stride", c_int64), ("length", c_int64), ("is_f32", c_int64)]


class CView(Structure):
    """`View`."""

    _fields_ = [("data", c_void_p), ("width", c_int64), ("pitch", c_int64)]


class CRoute(Structure):
    """`Route`."""

    _fields_ = [
        ("logits", CView),
        ("prior", c_void_p),
        *((name, c_int64) for name in ("batch", "experts", "top_k", "stride", "slots")),
        ("gain", c_double),
        *((name, c_void_p) for name in ("ids", "slot", "index", "share", "distinct_slot", "distinct")),
    ]


class COperation(Structure):
    """`Operation`."""

    _fields_ = [
        ("kind", c_int64),
        ("batch", c_int64),
        ("x", CView),
        ("y", CView),
        ("matrices", POINTER(CMatrix)),
        ("n_matrices", c_int64),
        ("gain", POINTER(CVector)),
        ("biases", POINTER(CVector)),
        *((name, c_int64) for name in ("n_biases", "accumulate", "blocks")),
        ("route", POINTER(CRoute)),
        ("top_k", c_int64),
        ("k", CView),
        ("v", CView),
        ("q_rope", CView),
        *(
            (name, c_int64)
            for name in ("is_mla", "heads", "kv_heads", "head_dim", "value_dim", "length", "cache_format")
        ),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("state", c_void_p),
        ("elements", c_int64),
    ]


class CRegion(Structure):
    """`Region` (native/program.h): memory a program may read and, where `writable`, write."""

    _fields_ = [("start", c_void_p), ("bytes", c_int64), ("writable", c_int64)]


class CCut(Structure):
    """`Cut`."""

    _fields_ = [
        ("bytes", c_int64),
        ("buffer", c_void_p),
        *((name, c_int64) for name in ("buffer_bytes", "at", "streams", "prefetch")),
    ]


class CSegment(Structure):
    """`Segment`: nanoseconds and bytes."""

    _fields_ = [(name, c_int64) for name in ("step", "step_lost", "step_bytes", "roof", "roof_lost", "roof_bytes")]


STRUCTURES = (COperation, CRoute, CMatrix, CVector, CRegion, CCut, CSegment)


def region(array: NDArray[Any], *, writable: bool = True) -> CRegion:
    """The memory of a C-contiguous array."""
    return CRegion(array.ctypes.data, array.nbytes, writable)


class RouteState:
    """The arrays one `Route` writes and the expert operations read."""

    def __init__(self, route: Route, batch: int, view: Callable[[View], CView]) -> None:
        shape = (batch, route.top_k)
        self.prior = np.ascontiguousarray(route.prior, np.float32)
        self.ids, self.slot, self.index = (np.zeros(shape, np.int32) for _ in range(3))
        self.share = np.zeros(shape, np.float32)
        self.distinct_slot = np.zeros(max(1, batch * route.top_k), np.int32)
        self.distinct = np.zeros(1, np.int64)
        chosen = (self.ids, self.slot, self.index, self.share, self.distinct_slot, self.distinct)
        self.regions = [region(self.prior, writable=False), *(region(a) for a in chosen)]
        self.c = CRoute(
            view(route.logits),
            self.prior.ctypes.data,
            batch,
            route.experts,
            route.top_k,
            route.stride,
            route.slots,
            route.GAIN,
            *(a.ctypes.data for a in chosen),
        )


class Translator:
    """Turns operations into C records; keeps everything they point to alive.

    Args:
        program: what to translate.
        address: pool name -> address of its first byte.
        registers: name -> float32 [batch, width], C-contiguous.
        lanes: 32-bit lanes of the core's vectors.
    """

    def __init__(
        self, program: Program, address: Callable[[str], int], registers: dict[str, NDArray[np.float32]], lanes: int
    ) -> None:
        self._address, self._registers, self._batch, self._lanes = address, registers, program.batch, lanes
        self._alive: list[Any] = []
        self.routes: dict[str, RouteState] = {}
        self.operations = (COperation * max(1, len(program.operations)))()
        for record, operation in zip(self.operations, program.operations, strict=False):
            record.kind, record.batch = KINDS[type(operation)], program.batch
            _FILL[type(operation)](self, record, operation)

    def regions(self) -> list[CRegion]:
        """The arrays of its routes."""
        return [r for route in self.routes.values() for r in route.regions]

    def place(self, place: Place | None) -> int | None:
        """Address of a place's first slot."""
        return None if place is None else self._address(place.pool) + place.offset

    def view(self, view: View | None) -> CView:
        """A view of a register."""
        if view is None:
            return CView()
        register = self._registers[view.register]
        return CView(register.ctypes.data + 4 * view.offset, view.width, register.shape[1])

    def matrix(self, weight: Weight) -> CMatrix:
        """A weight."""
        places = (weight.weights, weight.scales, weight.tensor_scale)
        return CMatrix(
            *(self.place(p) for p in places),
            *(p.stride if p else 0 for p in places),
            weight.rows,
            weight.columns,
            FORMAT_INDEX[weight.format],
            interleaving(weight.format, weight.columns, self._lanes) is not None,
        )

    def vector(self, vector: Vector) -> CVector:
        """A vector."""
        return CVector(self.place(vector.place), vector.place.stride, vector.length, int(vector.dtype == "f32"))

    def keep(self, records: Sequence[Any]) -> Any:
        """An array of records that stays alive with this object."""
        array = (type(records[0]) * len(records))(*records)
        self._alive.append(array)
        return array

    def matrices(self, record: COperation, weights: Sequence[Weight]) -> None:
        """Set the matrices of a record."""
        record.matrices, record.n_matrices = self.keep([self.matrix(w) for w in weights]), len(weights)

    def small(self, record: COperation, gain: Vector | None, biases: Sequence[Vector]) -> None:
        """Set the gain and biases of a record."""
        if gain:
            record.gain = self.keep([self.vector(gain)])
        if biases:
            record.biases, record.n_biases = self.keep([self.vector(v) for v in biases]), len(biases)


def _embed(t: Translator, record: COperation, op: Embed) -> None:
    record.y = t.view(op.out)
    t.matrices(record, [op.table])


def _product(t: Translator, record: COperation, op: Product) -> None:
    record.x, record.y, record.accumulate, record.blocks = t.view(op.x), t.view(op.out), op.accumulate, op.blocks
    t.matrices(record, op.matrices)
    t.small(record, op.gain, op.biases)


def _gated(t: Translator, record: COperation, op: GatedProduct) -> None:
    record.x, record.y, record.blocks = t.view(op.x), t.view(op.out), 1
    t.matrices(record, [m for m in (op.gate, op.up) if m])
    t.small(record, op.gain, ())


def _attend(t: Translator, record: COperation, op: Attend) -> None:
    record.x, record.y, record.k, record.v = t.view(op.q), t.view(op.out), t.view(op.k), t.view(op.v)
    record.q_rope = t.view(op.q_rope)
    record.is_mla = op.kind == "mla"
    for name in ("heads", "kv_heads", "head_dim", "value_dim", "length"):
        setattr(record, name, getattr(op, name))
    record.cache_format = FORMAT_INDEX[op.cache_format]
    record.keys, record.values = t.place(op.keys), t.place(op.values)


def _state(t: Translator, record: COperation, op: State) -> None:
    record.x, record.y = t.view(op.x), t.view(op.out)
    record.state, record.elements = t.place(op.place), op.elements


def _route(t: Translator, record: COperation, op: Route) -> None:
    t.routes[op.label] = RouteState(op, record.batch, t.view)
    record.route = pointer(t.routes[op.label].c)


def _experts_up(t: Translator, record: COperation, op: ExpertsUp) -> None:
    record.x, record.y, record.top_k = t.view(op.x), t.view(op.out), op.top_k
    record.route = pointer(t.routes[op.route].c)
    shared = [m for pair in op.shared for m in pair if m]
    t.matrices(record, [m for m in (op.gate, op.up) if m] + shared)
    record.blocks = 2 if op.gate else 1
    record.accumulate = len(shared)
    t.small(record, op.gain, [v for v in (op.gate_bias, op.up_bias) if v])


def _experts_down(t: Translator, record: COperation, op: ExpertsDown) -> None:
    record.x, record.y, record.top_k = t.view(op.x), t.view(op.out), op.top_k
    record.route = pointer(t.routes[op.route].c)
    t.matrices(record, [op.down, *op.shared])
    t.small(record, None, [op.bias] if op.bias else [])


_FILL: dict[type[Operation], Callable[[Translator, COperation, Any], None]] = {
    Embed: _embed,
    Product: _product,
    GatedProduct: _gated,
    Attend: _attend,
    State: _state,
    Route: _route,
    ExpertsUp: _experts_up,
    ExpertsDown: _experts_down,
}


def format_traits() -> list[int]:
    """Every format's traits, in the order of the core's `moegauge_traits`."""
    return [
        number
        for row in FORMATS.values()
        for number in (
            ELEMENTS.index(row.element),
            SCALES.index(row.scale),
            row.scale_rows,
            row.scale_columns,
            row.tensor_scale,
        )
    ]


def sizes() -> list[int]:
    """sizeof of every structure, in the order of the core's `moegauge_sizes`."""
    return [ctypes.sizeof(s) for s in STRUCTURES]
