"""The tests."""

import os

# Several processes run tests at once. This is read when numpy and torch are imported, here and by what the tests start.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
