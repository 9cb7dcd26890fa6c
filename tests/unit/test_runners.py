"""Where shards of offline work run, and what is heard of them meanwhile."""

import functools
import sys
import time

import pytest

from kd_plugin.runners import jobs as runners


class Waiting:
    """Says that it has done one of two steps, and ends once that was heard: the file is there."""

    def __init__(self, heard, number):
        self._heard = heard

    def __call__(self, shard):
        self.progress(1)
        deadline = time.monotonic() + 60
        while not self._heard.exists():
            assert time.monotonic() < deadline, "nothing was heard before the shard was finished"
            time.sleep(0.01)
        self.progress(1)
        return shard


@pytest.mark.parametrize("shards,workers", [(3, 1), (1, 2), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_progress_is_heard_before_a_shard_is_finished(shards, workers, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_TEST_COLD", "1")  # interpreters of their own, as users have them
    monkeypatch.setattr(sys, "argv", ["kd-plugin", "select"])  # its workers need no fairseq: they start quickly
    steps = []

    def progress(step):
        steps.append(step)
        (tmp_path / "heard").touch()

    make_worker = functools.partial(Waiting, tmp_path / "heard")
    results = list(runners.run(list(range(shards)), make_worker, progress, workers=workers))
    assert sorted(results) == list(range(shards)) and steps == [1] * (2 * shards)
    assert list(runners.run([], make_worker, progress, workers=workers)) == []
