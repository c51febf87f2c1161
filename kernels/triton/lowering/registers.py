"""Activations and scratch of a compiled program on the GPU, and which of them have bfloat16 copies."""

from __future__ import annotations

from typing import Any

from moegauge.kernels import program as ir


def shadowed(program: ir.Program) -> set[str]:
    """Registers a product reads without a norm and only products, experts and attention write: their kernels also
    write a bfloat16 copy, which the product reads as it is."""
    read: set[str] = set()
    unfit: set[str] = set()
    for op in program.operations:
        if isinstance(op, (ir.Product, ir.GatedProduct, ir.ExpertsUp)) and op.gain is None:
            read.add(op.x.register)
        if isinstance(op, ir.ExpertsDown):
            read.add(op.x.register)
        if isinstance(op, (ir.Embed, ir.State)):
            unfit.update(view.register for view in op.outputs())
    return read - unfit


class Registers:
    """Activations [B, width] float32 by name, and scratch that grows while a program is compiled."""

    def __init__(self, program: ir.Program, device: str) -> None:
        import torch

        self.device = device
        self._batch = max(1, program.batch)
        # `torch.full` with NaN: an output no kernel writes is seen at once.
        self._values = {
            name: torch.full((self._batch, width), float("nan"), device=device)
            for name, width in program.registers.items()
        }
        self._shadows = {
            name: self._values[name].to(torch.bfloat16) for name in shadowed(program) if name in self._values
        }
        self._prepared: dict[Any, torch.Tensor] = {}
        self._normalised: dict[tuple[str, ir.Vector], tuple[Any, torch.Tensor, torch.Tensor]] = {}
        self._scratch: dict[str, torch.Tensor] = {}
        self._retired: list[torch.Tensor] = []
        kinds = {
            "u32": torch.uint32,
            "f32": torch.float32,
            "bf16": torch.bfloat16,
            "u8": torch.uint8,
            "i32": torch.int32,
        }
        self._nothing = {kind: torch.zeros(256, dtype=torch.uint8, device=device).view(t) for kind, t in kinds.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def view(self, view: ir.View) -> Any:
        """The register from the view's first column on."""
        return self._values[view.register][:, view.offset :]

    def stride(self, view: ir.View) -> int:
        """Elements from one token to the next."""
        return int(self._values[view.register].shape[1])

    def shadow(self, name: str) -> Any:
        """The bfloat16 copy of a register, or None."""
        return self._shadows.get(name)

    def write(self, name: str, values: Any) -> None:
        """Overwrite a register, its shadow and its normalised copies."""
        held = self._values[name]
        held.copy_(values)
        if name in self._shadows:
            self._shadows[name].copy_(held)
        for (register, _), (gain, normalised, squares) in self._normalised.items():
            if register == name:
                normalised.copy_(held * gain[: held.shape[1]].float())
                squares.copy_((held * held).reshape(-1, 16).sum(1))

    def prepared(self, view: ir.View, gain: ir.Vector | None) -> Any:
        """The bfloat16 input a `prepare` launch makes of a view, rows on 16 bytes."""
        import torch

        key = (view, gain)
        if key not in self._prepared:
            wide = -(-view.width // 8) * 8
            self._prepared[key] = torch.zeros((self._batch, wide), dtype=torch.bfloat16, device=self.device)
        return self._prepared[key]

    def normalised(self, name: str, vector: ir.Vector, gain: Any) -> tuple[Any, Any]:
        """What `device.normalised` keeps of a register of a single token: bfloat16 of it times `gain`, the
        elements of `vector`, and the sums of squares of its tiles of 16."""
        import torch

        if (name, vector) not in self._normalised:
            held = self._values[name]
            normalised = torch.zeros(held.shape, dtype=torch.bfloat16, device=self.device)
            squares = torch.zeros(held.shape[1] // 16, dtype=torch.float32, device=self.device)
            self._normalised[name, vector] = gain, normalised, squares
        return self._normalised[name, vector][1:]

    def nothing(self, kind: str) -> Any:
        """A stand-in for an argument that is not used."""
        return self._nothing[kind]

    def part(self, size: int) -> Any:
        """Scratch for partial sums, float32; contents last for one operation."""
        return self._grow("part", size)

    def stats(self, size: int) -> Any:
        """Scratch for attention's maxima and sums."""
        return self._grow("stats", size)

    def counters(self, size: int) -> Any:
        """Arrival counters; zero between launches."""
        return self._grow("counters", size)

    def _grow(self, name: str, size: int) -> Any:
        import torch

        held = self._scratch.get(name)
        if held is None or held.numel() < size:
            if held is not None:
                self._retired.append(held)  # launches lowered before still point to it
            dtype = torch.int32 if name == "counters" else torch.float32
            grown = max(size, 2 * held.numel() if held is not None else 4096)
            self._scratch[name] = torch.zeros(grown, dtype=dtype, device=self.device)
        return self._scratch[name]


class RouteTables:
    """What `moegauge.kernels.triton.device.route` writes for one `Route`."""

    def __init__(self, op: ir.Route, batch: int, device: str) -> None:
        import torch

        self.experts, self.top_k = op.experts, op.top_k
        pairs = batch * op.top_k

        def table(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        self.prior = torch.tensor(op.prior, dtype=torch.float32, device=device).contiguous()
        self.ids, self.slot_of, self.number_of, self.slots, self.counts = (table(pairs) for _ in range(5))
        self.members = table(self.most(batch) * batch)
        self.distinct = table(1)
        self.share = torch.zeros(pairs, dtype=torch.float32, device=device)
        self.choices = table(batch * op.experts)
        self.firsts = table(1 << max(5, (pairs - 1).bit_length()))
        self.numbers = table(op.experts)

    def most(self, batch: int) -> int:
        """Distinct experts at most."""
        return min(batch * self.top_k, self.experts)
