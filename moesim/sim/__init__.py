"""The discrete-event simulator: simpy moves time, a compiled kernel runs the engine steps between two events."""
