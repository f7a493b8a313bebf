"""Measure: microbenchmarks of this machine, verified before they are timed, written with what a reader must know."""

from moesim.calibrate.measure.record import (
    COLUMNS,
    DIMS,
    Measurement,
    Point,
    read_measurements,
    write_measurements,
)
from moesim.calibrate.measure.run import Progress, measure, measure_point
from moesim.calibrate.measure.suites import SUITES, Effort, suite_points

__all__ = [
    "COLUMNS",
    "DIMS",
    "SUITES",
    "Effort",
    "Measurement",
    "Point",
    "Progress",
    "measure",
    "measure_point",
    "read_measurements",
    "suite_points",
    "write_measurements",
]
