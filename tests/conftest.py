"""One hypothesis profile for all tests: no deadline (machines are noisy), the same examples in every run."""

from hypothesis import settings

settings.register_profile("moesim", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("moesim")
