"""One hypothesis profile for every machine: the same examples on each run, no deadline, nothing left on disk."""

from hypothesis import settings

settings.register_profile("unit", derandomize=True, database=None, deadline=None, max_examples=150)
settings.load_profile("unit")
