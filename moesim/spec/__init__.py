"""Frozen nouns read from files: hardware, model, traffic, routing, deployment, targets, scenario."""
