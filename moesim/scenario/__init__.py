"""Scenario: extends, variants, ``--set``, references to the catalog, and the origin of each value."""

from moesim.scenario.lint import LintReport, lint
from moesim.scenario.load import Loaded, content_hash, load, origin_of, variant_names
from moesim.scenario.schema import KINDS, json_schema

__all__ = [
    "KINDS",
    "LintReport",
    "Loaded",
    "content_hash",
    "json_schema",
    "lint",
    "load",
    "origin_of",
    "variant_names",
]
