"""--runner ray: a cluster's actors make, byte by byte, what one process makes."""

import json

import pytest

from tests.integration.test_cache import few, store_files  # noqa: F401
from tests.integration.test_decode import command, decoded, tree  # noqa: F401
from tests.support import run

pytest.importorskip("ray.data", reason="ray[data] is not installed")

# both verbs in one process, because a cluster takes longer to start than its work
PROGRAM = """import json, sys
from kd_plugin.cli import main
sys.exit(max(main(words) for words in json.loads(sys.argv[1])))
"""
RAY = ["--runner", "ray", "--workers"]


def test_translations_and_answers_are_the_same(workspace, decoded, few, tmp_path):  # noqa: F811
    (tmp_path / "both.py").write_text(PROGRAM)
    _, *decode = command(workspace, tmp_path / "decoded", *RAY, 2)
    cache = ["cache", workspace.data, "--teacher-path", workspace.teacher, "--cache-dir", tmp_path / "cache"]
    # one actor for the second: each imports torch and fairseq, which takes longer than its work
    words = [list(map(str, verb)) for verb in (decode, [*cache, "--k", 8, "--shard-tokens", 500, *RAY, 1])]
    run("python", tmp_path / "both.py", json.dumps(words), env={"RAY_USAGE_STATS_ENABLED": "0"})
    assert tree(tmp_path / "decoded") == tree(decoded)
    assert store_files(tmp_path / "cache") == store_files(few)
