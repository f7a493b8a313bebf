"""Local: a small MoE transformer on this machine, predicted from microbenchmarks and measured beside them."""

from moesim.calibrate.local.store import write_validation
from moesim.calibrate.local.validate import (
    SCOPES,
    Comparison,
    Scope,
    Target,
    Validation,
    targets,
    validate_local,
)

__all__ = [
    "SCOPES",
    "Comparison",
    "Scope",
    "Target",
    "Validation",
    "targets",
    "validate_local",
    "write_validation",
]
