"""Silicon: NVIDIA's measured kernel tables, read from the installed extra and turned into tidy SI frames."""

from moesim.calibrate.silicon.families import FAMILIES, Imported, ImportReport, read_family
from moesim.calibrate.silicon.tables import systems_folder

__all__ = ["FAMILIES", "ImportReport", "Imported", "read_family", "systems_folder"]
