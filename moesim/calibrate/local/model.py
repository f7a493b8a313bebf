"""Model: a small MoE transformer in plain PyTorch, float32, with real top-k routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.calibrate.local.ops import add, attend, clear, collect, combine, glu, norm, product, select

if TYPE_CHECKING:
    import torch

__all__ = ["Architecture", "Layer", "Network", "build", "forward", "moe_layer"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of the transformer.

    Attributes
    ----------
    hidden, heads, inner, experts, top_k, layers, vocabulary : as usual; heads are 64 wide, ``inner`` is one
        expert's width
    """

    hidden: int
    inner: int
    experts: int
    top_k: int
    layers: int = 2
    vocabulary: int = 2048

    @property
    def heads(self) -> int:
        """Attention heads of width 64."""
        return self.hidden // 64


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Weights of one layer: norms [h], qkv [3 h, h], out [h, h], router [e, h], gate_up [e, 2 i, h], down [e, h, i]."""

    before_attention: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    before_experts: torch.Tensor
    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A built transformer: embedding [vocabulary, h], layers, last norm, head [vocabulary, h]."""

    sizes: Architecture
    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    last: torch.Tensor
    head: torch.Tensor


def build(sizes: Architecture, seed: int) -> Network:
    """Return a network with normal weights, scaled so that activations keep their size."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    h, i, e = sizes.hidden, sizes.inner, sizes.experts

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    layers = tuple(
        Layer(
            torch.ones(h),
            weight(3 * h, h),
            weight(h, h),
            torch.ones(h),
            weight(e, h),
            weight(e, 2 * i, h),
            weight(e, h, i),
        )
        for _ in range(sizes.layers)
    )
    embedding = torch.randn(sizes.vocabulary, h, generator=generator)
    return Network(sizes, embedding, layers, torch.ones(h), weight(sizes.vocabulary, h))


def moe_layer(
    x: torch.Tensor, layer: Layer, top_k: int, loads: list[list[int]] | None = None
) -> torch.Tensor:
    """Run the routed experts of one layer, expert by expert.

    Parameters
    ----------
    x : [m, h]
    loads : rows of every expert are appended here when given

    Returns
    -------
    [m, h]
    """
    weights, tokens, counts = select(product(x, layer.router), top_k)
    if loads is not None:
        loads.append(counts)
    out = clear(x)
    first = 0
    for expert, count in enumerate(counts):
        if count:
            rows, values = collect(x, tokens, first, count)
            values = product(glu(product(values, layer.gate_up[expert])), layer.down[expert])
            combine(out, rows, values, weights, first)
            first += count
    return out


def forward(
    network: Network,
    tokens: torch.Tensor,
    turn: tuple[torch.Tensor, torch.Tensor],
    loads: list[list[int]] | None = None,
) -> torch.Tensor:
    """Prefill ``tokens`` [batch, length] and return the logits of the last position, [batch, vocabulary].

    Parameters
    ----------
    turn : ``ops.rotations(length, 64)``
    loads : one list of rows per expert and layer is appended when given
    """
    batch, length = tokens.shape
    sizes = network.sizes
    _, x = collect(network.embedding, tokens.reshape(-1), 0, batch * length)
    for layer in network.layers:
        mixed = attend(product(norm(x, layer.before_attention), layer.qkv), batch, 64, turn)
        x = add(x, product(mixed, layer.out))
        x = add(x, moe_layer(norm(x, layer.before_experts), layer, sizes.top_k, loads))
    last = x.view(batch, length, -1)[:, -1]
    return product(norm(last, network.last), network.head)
