"""Profiles: a user's own measurements, from the tools they already use, as one tidy frame per file.

``import_profile`` reads PyTorch profiler (Kineto) traces, Nsight Systems CSV, tables of your own (CSV or parquet,
with a column mapping) and the results of vLLM's and SGLang's serving benchmarks. Kernel imports share one schema
(``COLUMNS``), one row per distinct (op, kernel, dtype, variant, sizes, device):

- ``source``: file the row came from; ``device``: catalog name, or the name in the file, or empty;
- ``op``: ``gemm``, ``batched_gemm``, ``grouped_gemm``, ``moe_ffn``, ``prefill_attention``, ``decode_attention``,
  ``attention`` (neither of the two), ``rmsnorm``, ``rmsnorm_residual``, ``layernorm``, ``topk_routing``, ``copy``
  (device to device), ``transfer`` (host and device), ``all_reduce``, ``all_gather``, ``reduce_scatter``,
  ``all_to_all``: the words of ``moesim calibrate measure``, so that own measurements and imports stand side by side;
- ``kernel``: the kernels that did it, as their authors call them; ``dtype``: type of the operands; ``variant``: what
  is left to say (``h2d-pinned``, ``causal``, ``nongated``);
- sizes (``DIMS``): ``m, n, k``, ``hidden, inner, experts, top_k, tokens``, ``batch, queries, length, heads, kv_heads,
  head_dim, value_dim``, ``size``, ``ranks``: integers, missing where an op has no such size;
- ``seconds``: median per call [s]; ``seconds_min``, ``seconds_p90``; ``count``: calls; ``activities``: kernels and
  copies of one call;
- ``flop``, ``bytes``: work of a call by the cost model's formulas; ``bound_s``: least time that the datasheet of the
  named device allows [s], NaN where device, peak or link is not known;
- ``sized``: every size that the op needs is known; ``possible``: not faster than ``bound_s``. Fits use
  ``ProfileImport.fittable``, rows where both hold.

Serving imports have one row per run (``serving.RUN_COLUMNS``) and, where the file keeps them, one per request.

Nothing is dropped silently: records read = kept + dropped, by reason.
"""

from moesim.calibrate.profiles.frame import COLUMNS, DIMS, ProfileImport
from moesim.calibrate.profiles.importer import KINDS, Kind, import_profile
from moesim.calibrate.profiles.replay import scenario_skeleton
from moesim.calibrate.profiles.store import read_import, write_import

__all__ = [
    "COLUMNS",
    "DIMS",
    "KINDS",
    "Kind",
    "ProfileImport",
    "import_profile",
    "read_import",
    "scenario_skeleton",
    "write_import",
]
