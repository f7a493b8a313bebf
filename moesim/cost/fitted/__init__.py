"""Fitted: kernel times learned from measurements, as plain data with its own evaluation (numpy alone)."""

from moesim.cost.fitted.artifact import Artifact, Group, load_artifact, save_artifact, shipped
from moesim.cost.fitted.estimator import FRAMEWORKS, Fitted, Framework, launched

__all__ = [
    "FRAMEWORKS",
    "Artifact",
    "Fitted",
    "Framework",
    "Group",
    "launched",
    "load_artifact",
    "save_artifact",
    "shipped",
]
