"""Recorded: runs and kernels that others measured and published, predicted and scored."""
