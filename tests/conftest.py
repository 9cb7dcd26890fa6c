"""Fixtures shared by all tiers."""

import os
import pathlib

import hypothesis
import pytest

# CI judges a change by the same examples each time; elsewhere every run draws new ones
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

# before torch is imported: many small processes share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """Binarised corpus and trained teacher, made once a session (see tests/support.py)."""
    from tests.support import Workspace

    return Workspace(tmp_path_factory.mktemp("work space"))
