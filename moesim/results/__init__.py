"""Results: declared tables of a run, its metrics, laws, storage, comparison and trace."""

from moesim.results.compare import compare
from moesim.results.laws import LAWS, check
from moesim.results.metrics import DEFINITIONS, summary
from moesim.results.store import read_result, write_result
from moesim.results.tables import TABLES, Column, Result, Tables, conform
from moesim.results.targets import Limits, Verdict, limits_of, verdicts
from moesim.results.trace import chrome_trace, write_trace

__all__ = [
    "DEFINITIONS",
    "LAWS",
    "TABLES",
    "Column",
    "Limits",
    "Result",
    "Tables",
    "Verdict",
    "check",
    "chrome_trace",
    "compare",
    "conform",
    "limits_of",
    "read_result",
    "summary",
    "verdicts",
    "write_result",
    "write_trace",
]
