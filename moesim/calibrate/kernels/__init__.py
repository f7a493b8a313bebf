"""The project's own Triton kernels, the float64 references they are checked against, and token sorting.

The modules with kernels import Triton when they are imported, so import them only where ``runs_on`` says yes.
"""

from moesim.calibrate.kernels.availability import kernel_errors, runs_on

__all__ = ["kernel_errors", "runs_on"]
