"""Fixtures shared by all tiers."""

import fcntl
import gc
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

GARBAGE = 50_000, 20, 50  # numbers for a process with as many objects as torch and fairseq have
gc.disable()  # until all is imported and collected, none of which is garbage


def pytest_sessionstart(session):
    from tests import warm_hydra, warm_spawn, warm_start

    if session.config.getoption("numprocesses", None):  # which is unknown to the workers themselves
        return warm_start.start_for_all()
    warm_hydra.install()
    warm_spawn.install(warm_start.server)


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish():
    """The collector need not walk through torch, fairseq and the tests themselves each time that a test runs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    gc.enable()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """Binarised corpus and trained teacher, made once for all of a session's workers (see tests/support.py)."""
    from tests.support import Workspace

    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    workspace = Workspace(common / "work space")
    with open(common / "work space.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back by whoever closes it, or dies
        lock.seek(0)
        if lock.read() != "made":
            workspace.make()
            lock.write("made")
    return workspace
