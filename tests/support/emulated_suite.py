"""A pytest plugin: the whole suite's tests of compiled backends run on the emulated CUDA backend too.

    PYTHONPATH=tests python -m pytest -p emulated_suite -k emulated

Slow, so not part of `make test`, which runs test_cuda_emulated.py.
"""

from emulated import add_emulated_backend

add_emulated_backend()
