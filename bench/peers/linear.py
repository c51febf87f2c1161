"""Peers that offer a product y = x W^T with packed weights, and expert layers written with it.

An expert layer is written as a model in plain PyTorch writes it: for every chosen expert its tokens' rows, gate and up
products, SwiGLU, the down product, and a weighted sum. On a GPU one run is captured in a CUDA graph, so that Python's
20 us a call are not what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegauge.bench.peers.work import Work
from moegauge.errors import NumericsError

Floats = NDArray[np.float64]

# Largest error over largest output. Inputs and weights are taken as stored, so that a product only rounds its output to
# bfloat16 (2^-9) and, where the peer dequantises to bfloat16, its weights (2^-9 each, 2,880 to 7,168 of them averaged).
PRODUCT_BOUND = 0.01
# An expert rounds twice more, between its products.
EXPERTS_BOUND = 0.02
# With float8 inputs the activation between the products is rounded to 3 bits: 2^-4 each, averaged over a row.
FLOAT8_BOUND = 0.1


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """One matrix as a peer packs it.

    Attributes:
        tensors: everything a product reads beside its input.
        product: input [tokens, columns] as `prepare` made it -> y [tokens, rows].
        values: the float64 matrix [rows, columns] the packed tensors stand for.
        prepare: what turns an input into the product's own type; None takes it as it is.
    """

    tensors: tuple[Any, ...]
    product: Callable[[Any], Any]
    values: Callable[[], Floats]
    prepare: Callable[[Any], Any] | None = None

    def ready(self, x: Any) -> Any:
        """An input as the product takes it."""
        return x if self.prepare is None else self.prepare(x)

    @property
    def bytes(self) -> int:
        """Bytes of the packed tensors."""
        return sum(int(t.numel()) * int(t.element_size()) for t in self.tensors)


# (rows, columns, how many, seed) -> so many matrices of random content.
Packer = Callable[[int, int, int, int], list[PackedMatrix]]


@dataclass(slots=True)
class LinearProducts:
    """`product` work: every matrix once, all with the same input."""

    work: Work
    device: str
    matrices: list[PackedMatrix]
    x: Any
    bound: float = PRODUCT_BOUND
    launch_mode: str = "threads"
    _ready: Any = None
    _checked: int = 0

    def __post_init__(self) -> None:
        self._ready = self.matrices[0].ready(self.x)  # the input is the same for all: its rounding is not timed

    @property
    def bytes(self) -> int:
        """Of all matrices."""
        return sum(m.bytes for m in self.matrices)

    @property
    def parameters(self) -> int:
        """Of all matrices."""
        return self.work.parameters

    @property
    def kernels(self) -> int:
        """One product a matrix."""
        return len(self.matrices)

    def run(self) -> None:
        """Every matrix once."""
        for matrix in self.matrices:
            matrix.product(self._ready)

    def check(self) -> float:
        """The first matrix, then the last: see `Prepared.check`."""
        matrix = self.matrices[-self._checked]
        self._checked = 1
        got = as_float64(matrix.product(self._ready))
        return judge(got, as_float64(self.x) @ matrix.values().T, self.bound, f"product with {self.work.format}")

    def close(self) -> None:
        """Let go of the matrices."""
        self.matrices.clear()


@dataclass(slots=True)
class LinearExperts:
    """`experts` work: layer after layer, every one of the same input."""

    work: Work
    device: str
    layers: list[list[tuple[PackedMatrix, PackedMatrix, PackedMatrix]]]
    x: Any
    tokens: list[Any]
    shares: list[Any]
    bound: float = EXPERTS_BOUND
    launch_mode: str = "threads"
    _ready: list[Any] = field(default_factory=list)
    _checked: int = 0

    def __post_init__(self) -> None:
        # Every layer's input is the same: gathering and rounding it is not timed.
        gate = self.layers[0][0][0]
        self._ready = [gate.ready(self.x if self.work.tokens == 1 else self.x[tokens]) for tokens in self.tokens]

    @property
    def bytes(self) -> int:
        """Of all experts."""
        return sum(m.bytes for layer in self.layers for expert in layer for m in expert)

    @property
    def parameters(self) -> int:
        """Of all experts."""
        return self.work.parameters

    @property
    def kernels(self) -> int:
        """Three products an expert."""
        return 3 * self.work.layers * self.work.experts

    def run(self) -> None:
        """Every layer once."""
        for layer in self.layers:
            self._layer(layer)

    def _layer(self, layer: Sequence[tuple[PackedMatrix, PackedMatrix, PackedMatrix]]) -> Any:
        import torch

        silu = torch.nn.functional.silu
        out = torch.zeros(self.x.shape, dtype=torch.float32, device=self.x.device)
        for (gate, up, down), ready, tokens, share in zip(layer, self._ready, self.tokens, self.shares, strict=True):
            y = down.product(down.ready(silu(gate.product(ready)) * up.product(ready)))
            out.index_add_(0, tokens, y.float() * share)
        return out

    def check(self) -> float:
        """The first layer, then the last: see `Prepared.check`."""
        layer = self.layers[-self._checked]
        self._checked = 1
        got = as_float64(self._layer(layer))
        expected = np.zeros_like(got)
        x = as_float64(self.x)
        for (gate, up, down), tokens, share in zip(layer, self.tokens, self.shares, strict=True):
            rows = tokens.cpu().numpy()
            inner = swiglu(x[rows] @ gate.values().T, x[rows] @ up.values().T)
            expected[rows] += inner @ down.values().T * as_float64(share)
        return judge(got, expected, self.bound, f"experts in {self.work.format}")

    def close(self) -> None:
        """Let go of the matrices."""
        self.layers.clear()


@dataclass(slots=True)
class Captured:
    """Work of a GPU whose runs are replays of a CUDA graph."""

    inner: Any
    graph: Any
    launch_mode: str = "graph"

    @property
    def bytes(self) -> int:
        """As uncaptured."""
        return int(self.inner.bytes)

    @property
    def parameters(self) -> int:
        """As uncaptured."""
        return int(self.inner.parameters)

    @property
    def kernels(self) -> int:
        """As uncaptured."""
        return int(self.inner.kernels)

    def run(self) -> None:
        """Replay."""
        self.graph.replay()

    def check(self) -> float:
        """Checked outside the graph, by the same calls."""
        return float(self.inner.check())

    def close(self) -> None:
        """Let go of graph and matrices."""
        self.graph = None
        self.inner.close()


def prepare_linear(work: Work, device: str, pack: Packer, *, dtype: str, float8: bool = False) -> Any:
    """The work of a point from a peer's packer.

    Args:
        work: `product` or `experts`.
        device: `cpu` or `cuda`.
        pack: packs random matrices.
        dtype: torch's name of the input's type.
        float8: the peer rounds inputs to float8 itself; inputs are then ones float8 holds exactly.
    """
    import torch

    generator = torch.Generator().manual_seed(work.seed)
    x = torch.randn(work.tokens, work.columns, generator=generator)
    if float8:  # an exact power of two as the row's scale: the peer's own rounding then changes nothing
        x = x.clamp(-3.5, 3.5).to(torch.float8_e4m3fn).float()
        x[:, 0] = 3.5
    x = x.to(getattr(torch, dtype)).to(device)
    if work.kernel == "product":
        matrices = pack(work.rows, work.columns, work.experts, work.seed)
        made: Any = LinearProducts(work, device, matrices, x)
    else:
        count = work.layers * work.experts
        gates, ups = (pack(work.rows, work.columns, count, work.seed + i) for i in (0, 1))
        downs = pack(work.columns, work.rows, count, work.seed + 2)
        flat = list(zip(gates, ups, downs, strict=True))
        layers = [flat[i * work.experts :][: work.experts] for i in range(work.layers)]
        tokens = [torch.tensor(work.tokens_of(e), dtype=torch.int64, device=device) for e in range(work.experts)]
        shares = [torch.full((len(t), 1), 1 / work.top_k, device=device) for t in tokens]
        bound = FLOAT8_BOUND if float8 else EXPERTS_BOUND
        made = LinearExperts(work, device, layers, x, tokens, shares, bound)
    return made if device == "cpu" else captured(made)


def captured(made: Any) -> Any:
    """`made` as replays of a CUDA graph, or as it is where the peer's calls cannot be captured."""
    import torch

    from moegauge.kernels.triton.launching.capture import capture

    made.launch_mode = "eager"
    try:
        return Captured(made, capture(made.run))
    except RuntimeError:
        torch.cuda.synchronize()
        return made


def as_float64(tensor: Any) -> Floats:
    """A tensor's values on the host."""
    return np.asarray(tensor.detach().float().cpu().numpy(), np.float64)


def swiglu(gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up."""
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


def judge(got: Floats, expected: Floats, bound: float, what: str) -> float:
    """Largest error over largest output.

    Raises:
        NumericsError: past `bound`, or not a number.
    """
    largest = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(got - expected).max()) / largest
    if not error <= bound:  # NaN fails too
        raise NumericsError(
            f"{what}: an output is off by {error:.2g} of the largest, bound {bound:g}.",
            advice="A wrong answer has no time.",
        )
    return error
