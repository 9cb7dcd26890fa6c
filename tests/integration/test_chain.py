"""examples/translation/chain.sh: assistants between teacher and student, and born-again students."""

import os
import subprocess

from tests import warm_start
from tests.support import ROOT, load

SETTINGS = {"MAX_UPDATE": "8", "AVERAGE": "1", "WARMUP": "2", "OMP_NUM_THREADS": "1"}


def chain(workspace, out, *sizes, **settings):
    path = warm_start.path_of_commands() + os.pathsep + os.environ["PATH"]
    return subprocess.run(
        ["bash", ROOT / "examples" / "translation" / "chain.sh", workspace.data, workspace.teacher, out, *sizes],
        env={**os.environ, "PATH": path, **SETTINGS, **settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=600,
    )  # fmt: skip


def test_each_link_is_taught_by_the_one_before_and_all_share_the_updates(workspace, tmp_path):
    out = tmp_path / "out"
    done = chain(workspace, out, "2,1,16,32,2", "1,1,8,16,2", SHARES="1,3")
    assert done.returncode == 0, done.stdout[-3000:]
    states = {name: load(out / name / "averaged.pt") for name in ("link1", "link2", "direct")}
    updates = {name: load(out / name / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] for name in states}
    assert updates == {"link1": 2, "link2": 6, "direct": 8}
    sizes = {
        name: [getattr(s["cfg"]["model"], f) for f in ("encoder_layers", "decoder_layers", "encoder_embed_dim")]
        for name, s in states.items()
    }
    assert sizes == {"link1": [2, 1, 16], "link2": [1, 1, 8], "direct": [1, 1, 8]}
    taught = [line for line in done.stdout.splitlines() if ", taught by " in line]
    assert [line.split("taught by ")[1] for line in taught] == [
        str(workspace.teacher), str(out / "link1" / "averaged.pt"), str(workspace.teacher),
    ]  # fmt: skip
    again = chain(workspace, out, "2,1,16,32,2", "1,1,8,16,2", SHARES="1,3")
    assert again.returncode == 0 and again.stdout.count("done before") == 3
    other = chain(workspace, out, "1,1,16,32,2", "1,1,8,16,2", SHARES="1,3")
    assert other.returncode == 1 and "link1 was begun with other settings" in other.stdout


def test_what_cannot_be_a_chain_is_refused_before_any_work(workspace, tmp_path):
    for sizes, settings, message in (
        (["2,1,16"], {}, "a size is ENCODER_LAYERS,DECODER_LAYERS,DIM,FFN,HEADS"),
        (["1,1,8,16,2"], {"SHARES": "1,2"}, "names 2 shares for 1 sizes"),
        (["1,1,8,16,2"], {"SHARES": "0"}, "not a whole number above 0"),
        (["1,1,8,16,2", "1,1,8,16,2"], {"MAX_UPDATE": "1"}, "leaves a link without an update"),
    ):
        done = chain(workspace, tmp_path / "out", *sizes, **settings)
        assert done.returncode == 1 and message in done.stdout
        assert not (tmp_path / "out" / "link1").exists()
