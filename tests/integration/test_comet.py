"""COMET in evaluate and score: the real one, where that is installed, on tiny models with random weights."""

from pathlib import Path

import pytest
import sentencepiece
import yaml

from kd_plugin import cli
from kd_plugin.evaluation.results import read_evaluation
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_teachers import LANGS
from tests.unit.translation_folders import record, records_of, refusal, run_verb, write_folder

pytest.importorskip("comet", reason="COMET is not installed: pip install unbabel-comet")


def make_comet_model(folder: Path, with_references: bool = True) -> Path:
    """A regression model as COMET's own are: XLM-R, but of two small layers, and nobody has trained it."""
    import pytorch_lightning
    from comet.models import ReferencelessRegression, RegressionMetric
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer, XLMRobertaTokenizerFast

    encoder = folder / "encoder"
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_prefix=str(folder / "spm"), vocab_size=40, hard_vocab_limit=False
    )
    tokenizer = XLMRobertaTokenizer(str(folder / "spm.model"))
    tokenizer.save_pretrained(encoder)
    XLMRobertaTokenizerFast.from_pretrained(encoder).save_pretrained(encoder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = XLMRobertaConfig(vocab_size=len(tokenizer) + 2, max_position_embeddings=514, type_vocab_size=1, **size)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(encoder)
    kind = RegressionMetric if with_references else ReferencelessRegression
    model = kind(pretrained_model=str(encoder), hidden_sizes=[32, 16])
    trainer = pytorch_lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(model)
    path = folder / "model" / "checkpoints" / "model.ckpt"
    path.parent.mkdir(parents=True)
    trainer.save_checkpoint(path, weights_only=True)
    (folder / "model" / "hparams.yaml").write_text(yaml.safe_dump(dict(model.hparams)))
    return path


def test_values_are_those_of_comets_model(tmp_path):
    write_dictionaries(tmp_path, WORDS)
    test = {lang: tmp_path / f"test.{lang}" for lang in ("en", "de")}
    for path, step in zip(test.values(), (1, 3)):
        path.write_text("".join(" ".join(WORDS[i : i + 8 : step]) + "\n" for i in range(20)))
    command = ["evaluate", "--test", "t=" + ",".join(map(str, test.values())), "--remove-bpe", "none"]
    for seed in (1, 2):
        make_checkpoint(tmp_path / f"{seed}.pt", tmp_path, *LANGS, *MODEL, seed=seed)
        command += ["--model", f"m{seed}={tmp_path / f'{seed}.pt'}"]
    model = make_comet_model(tmp_path)
    command += ["--comet", str(model), "--baseline", "m1", "--bootstrap", "50", "--max-len-b", "12"]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    scores = {m.name: m.scores["t", "COMET"] for m in read_evaluation(str(tmp_path / "out")).models}
    assert scores["m1"].value != scores["m2"].value and 0 < scores["m2"].p_value <= 1
    sources, references = (path.read_text().splitlines() for path in test.values())
    for name, score in scores.items():
        lines = (tmp_path / "out" / "translations" / name / "t.txt").read_text().splitlines()
        rows = [{"src": s, "mt": text, "ref": r} for s, text, r in zip(sources, lines, references)]
        assert score.value == pytest.approx(sum(answers_of(model, rows)) / len(rows), abs=1e-5)


def answers_of(path, rows):
    """What COMET's own class answers in float64, each row alone: its command computes in float16."""
    import comet
    import torch

    model = comet.load_from_checkpoint(str(path)).eval().double()
    with torch.no_grad():
        for row in rows:
            # where there are references, a model may be asked with and without them: the first is with
            batch = model.prepare_sample([row], stage="predict")
            yield float(model(**(batch[0] if isinstance(batch, tuple) else batch)).score)


def test_scores_without_references_are_the_model_s(tmp_path, capsys):
    path = make_comet_model(tmp_path, with_references=False)
    pairs = [(" ".join(WORDS[i : i + 5]), " ".join(WORDS[i : i + 2 + i % 7 : 2])) for i in range(17)]
    write_folder(tmp_path / "in", [record(i, *pair) for i, pair in enumerate(pairs)], shard_records=6)
    run_verb("score", tmp_path / "in", "--metric", path, "--output", tmp_path / "out", "--workers", 2)
    ours = [h.score for r in records_of(tmp_path / "out") for h in r.hypotheses]
    rows = [{"src": source, "mt": text} for source, text in pairs]
    assert ours == pytest.approx(list(answers_of(path, rows)), abs=1e-5)
    assert len(set(ours)) > 10

    other = make_comet_model(tmp_path / "other")
    error = refusal(capsys, "score", tmp_path / "in", "--metric", other, "--output", tmp_path / "second")
    assert "compares translations with references" in error and not (tmp_path / "second").exists()
