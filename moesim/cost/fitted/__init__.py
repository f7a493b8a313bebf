"""Fitted: kernel times learned from measurements, as plain data with its own evaluation (numpy alone)."""

from moesim.cost.fitted.artifact import Artifact, Group, load_artifact, save_artifact, shipped
from moesim.cost.fitted.estimator import FRAMEWORKS, Fitted, Framework, launched
from moesim.cost.fitted.products import Products, chain_for

__all__ = [
    "FRAMEWORKS",
    "Artifact",
    "Fitted",
    "Framework",
    "Group",
    "Products",
    "chain_for",
    "launched",
    "load_artifact",
    "save_artifact",
    "shipped",
]
