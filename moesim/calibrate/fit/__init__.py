"""Fit: kernel times in efficiency space, from measured rows to a small artifact of plain data."""
