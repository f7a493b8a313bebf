"""Plans: from a scenario's plan section to a decision, its files, and what the simulator says of it."""
