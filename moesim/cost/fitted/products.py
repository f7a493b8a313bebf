"""Products: fitted kernels as a model's step uses them, without what its measured products already hold.

The tables time a quantised product from 16-bit input: the quantise pass is inside, so the model's own pass is free
beside a measured product. TensorRT-LLM's NVFP4 products carry a pass that its serving path fuses into the norm before;
SGLang's table of the same kernels is without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.cost.fitted.artifact import Artifact, shipped
from moesim.cost.fitted.estimator import Fitted, Framework
from moesim.cost.roofline import Chain, Roofline

if TYPE_CHECKING:
    from moesim.cost.attention import AttentionShape
    from moesim.cost.ops import Op
    from moesim.cost.pricing import AttentionTerm, FloatArray
    from moesim.cost.roofline import Origin, Place

__all__ = ["Products", "chain_for"]


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """The fitted kernels of an engine, with products as a step computes them.

    Attributes
    ----------
    inner : kernels of the engine
    nvfp4 : kernels to ask for NVFP4 products, where the engine's own table holds more than them
    """

    inner: Fitted
    nvfp4: Fitted | None = None

    @property
    def origin(self) -> Origin:
        """As the kernels inside."""
        return self.inner.origin

    def seconds(self, op: Op, place: Place) -> FloatArray:
        """Return seconds of all layers of ``op``, [tokens]; NaN where unknown."""
        if op.kind == "memory" and "quantise" in op.name:
            return np.zeros(op.tokens.shape)  # inside the measured product
        if op.kind == "gemm" and op.stored == "nvfp4" and self.nvfp4 is not None:
            return self.nvfp4.seconds(op, place)
        return self.inner.seconds(op, place)

    def attention(self, shape: AttentionShape, place: Place) -> AttentionTerm | None:
        """Return the coefficients of the kernels inside."""
        return self.inner.attention(shape, place)


def chain_for(framework: Framework, artifact: Artifact | None = None, moe_kernel: str = "auto") -> Chain:
    """Return the fitted kernels of an engine with the roofline bound behind them.

    Parameters
    ----------
    framework : whose kernels
    artifact : fitted groups; by default those that ship
    moe_kernel : see ``Fitted``

    Raises
    ------
    DataMissing : no artifact was given and none is installed
    """
    own = Fitted(framework, artifact or shipped(), moe_kernel)
    return Chain(
        (Products(own, Fitted("sglang", own.artifact) if framework == "trtllm" else None), Roofline())
    )
