"""Study: questions that take the simulator and measurements together."""
