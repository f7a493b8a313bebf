"""Plan: where every expert and every model should live, with a certified bound (PuLP, HiGHS, exact solvers)."""
