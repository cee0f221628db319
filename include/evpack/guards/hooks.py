"""Listening to a model while its metric is computed: figures of module outputs on sampled windows.

The forward passes are those of the metric, so a guard adds no pass. A figure belongs to one window, so it does not
depend on how many windows share a batch. Whatever goes wrong while listening is kept and said afterwards: it must
not look like a fault of the model that is listened to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from evpack.checkpoint.scope import place
from evpack.errors import EvaluationError, is_machine_fault
from evpack.files import finite_or_none
from evpack.guards.hooks_records import ModuleActivations
from evpack.guards.spectral_sigma import CONTRACT as SIGMA
from evpack.guards.spectral_sigma import squared_sum, top_singular_value

if TYPE_CHECKING:
    import torch

CONTRACT = {
    "kind": "activation_edge_risk",
    "matrix": "tokens of one window x features",
    "centred": "columns",
    "scaled": "standard deviation of the centred matrix",
    "edge": "sqrt(m) + sqrt(n)",
    "sigma": SIGMA,
}
"""How a figure was found, as records and reports name it."""

_WORDS = ("attn", "attention", "mlp", "ffn", "router", "expert", "moe", "gate", "gating", "switch")
"""A linear layer is listened to when its name holds one of these (the reference's list) or is that of a projection."""
_WAYS_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")

Kind = Literal["embedding", "norm", "linear", "experts"]


def edge_risk(matrix: torch.Tensor) -> float:
    """How far the largest singular value stands out of noise: 1 at the edge of a random matrix, NaN without one.

    Columns are centred, the result is divided by its standard deviation over all elements, and its largest singular
    value by ``sqrt(m) + sqrt(n)``, where that of noise with unit variance lies (Marchenko and Pastur 1967; Bai and
    Yin 1993 for the largest one). Padding never enters: windows are full.

    Args:
        matrix: m rows (tokens) x n columns (features), finite or not.
    """
    values = matrix.double()
    values = values - values.mean(dim=0, keepdim=True)
    rows, columns = values.shape
    spread = math.sqrt(squared_sum(values) / (rows * columns))
    if not math.isfinite(spread) or spread == 0.0:
        return math.nan
    return top_singular_value(values) / spread / (math.sqrt(rows) + math.sqrt(columns))


class Listener:
    """Collects the figures of one scoring of a run.

    Args:
        positions: which windows of the run, counted in scoring order, are sampled; ascending.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = list(positions)
        self._next = 0
        self._rows: list[tuple[int, int]] = []
        self._batch = 0
        self._length = 0
        self._found: dict[str, dict[int, tuple[float, float]]] = {}
        self._about: dict[str, tuple[Kind, Literal["ffn", "attn"] | None, int, int]] = {}
        self._failure: Exception | None = None

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Listen to a model while the block scores a run from its first window on."""
        self._next = 0
        handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name, module in model.named_modules():
            if (kind := _kind(name, module)) is not None:
                handles.append(module.register_forward_hook(self._hook(name, kind)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def modules(self) -> dict[str, ModuleActivations]:
        """The figures by module name.

        Raises:
            EvaluationError: when listening went wrong, or a sampled window was never scored.
        """
        if self._failure is not None:
            kind = type(self._failure).__name__
            raise EvaluationError(f"activations could not be measured: {kind}: {self._failure}") from self._failure
        if self._next <= max(self.positions, default=-1):
            raise EvaluationError(f"window {self._next} of the run was not scored, so its activations are not known")
        modules = {}
        for name, found in sorted(self._found.items()):
            kind, target, rows, columns = self._about[name]
            figures = [found.get(position, (math.nan, math.nan)) for position in self.positions]
            modules[name] = ModuleActivations(
                kind=kind,
                target=target,
                m=rows,
                n=columns,
                edge_risk=tuple(_recorded(risk) for risk, _ in figures),
                mean_square=tuple(_recorded(square) for _, square in figures),
            )
        return modules

    def _begin(self, _: Any, args: Any, kwargs: Any) -> None:
        """A batch starts: find out which of its rows are sampled."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._batch, self._length = int(ids.shape[0]), int(ids.shape[1])
        start, self._next = self._next, self._next + self._batch
        self._rows = [(p - start, p) for p in self.positions if start <= p < self._next]

    def _hook(self, name: str, kind: Kind) -> Callable[[Any, Any, Any], None]:
        target = _target(name, kind)

        def listen(_: Any, __: Any, output: Any) -> None:
            if not self._rows or self._failure is not None:
                return
            try:
                outputs = self._by_window(output[0] if isinstance(output, tuple) else output)
                if outputs is not None:
                    for row, position in self._rows:
                        self._take(name, (kind, target), position, outputs[row])
            except Exception as error:
                if is_machine_fault(error):
                    raise
                self._failure = error

        return listen

    def _by_window(self, output: torch.Tensor) -> torch.Tensor | None:
        """Outputs as [batch, rows, features]; None for routed tokens, of which each model has its own number."""
        if output.dim() >= 3 and output.shape[0] == self._batch:
            return output.reshape(self._batch, -1, output.shape[-1])
        if output.dim() == 3 and output.shape[0] == 1:  # position embeddings, one row for all
            return output.expand(self._batch, -1, -1)
        if output.dim() == 2 and output.shape[0] == self._batch * self._length:
            return output.reshape(self._batch, self._length, -1)
        return None

    def _take(self, name: str, about: tuple[Kind, Any], position: int, matrix: torch.Tensor) -> None:
        self._about[name] = (*about, int(matrix.shape[0]), int(matrix.shape[1]))
        values = matrix.double()
        square = squared_sum(values) / values.numel()
        self._found.setdefault(name, {})[position] = (edge_risk(values), square)


def _kind(name: str, module: Any) -> Kind | None:
    """Whether a module is listened to, and as what."""
    label = type(module).__name__
    lowered = label.lower()
    if lowered.endswith("embedding") and "rotary" not in lowered:
        return "embedding"
    if lowered.endswith(("layernorm", "rmsnorm")):
        return "norm"
    if lowered.endswith("experts"):
        return "experts"
    heard = any(word in name.lower() for word in _WORDS) or place(f"{name}.weight", 2) is not None
    return "linear" if label.endswith(("Linear", "Conv1D")) and heard else None


def _recorded(value: float) -> float | None:
    """A figure as records hold it: six digits are a hundredth of what its change is judged by, and halve the files."""
    return finite_or_none(float(f"{value:.6g}"))


def _target(name: str, kind: Kind) -> Literal["ffn", "attn"] | None:
    """Which residual branch ends in this module."""
    if kind == "experts":
        return "ffn"
    where = place(f"{name}.weight", 2) if kind == "linear" else None
    if where is None or where.expert:
        return None
    if where.part == "ffn":
        return "ffn" if where.role == "down" else None
    return "attn" if name.rpartition(".")[2] in _WAYS_OUT else None
