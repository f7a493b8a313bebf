"""Where compiled search kernels are kept."""

from moesim.compiled import cache_folder, compiled_into

__all__ = ["cache_folder", "compiled_into"]
