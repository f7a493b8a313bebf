"""Plan: where every expert and every model should live, with a certified bound (PuLP and HiGHS, exact small solvers)."""
