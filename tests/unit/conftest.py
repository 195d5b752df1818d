"""One hypothesis profile for every machine: the same examples on each run, no deadline, nothing left on disk.

Others with another `TEST_SEED`.
"""

import os

from hypothesis import settings

settings.register_profile("unit", derandomize="TEST_SEED" not in os.environ, database=None, deadline=None, max_examples=150)
settings.load_profile("unit")
