"""Calibrate: measure kernels, import measurements, fit efficiencies, and say how far off the fits are."""
