"""Report: a run as one self-contained HTML page."""

from moesim.report.page import render, report

__all__ = ["render", "report"]
