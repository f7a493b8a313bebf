"""Report: a run, or a plan, as one self-contained HTML page."""

from moesim.report.page import render, report
from moesim.report.plan_page import plan_report, render_plan

__all__ = ["plan_report", "render", "render_plan", "report"]
