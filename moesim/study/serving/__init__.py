"""Serving: measured end-to-end runs, replayed through the simulator and scored against the measurements."""
