"""Scores by metrics without references: COMET's library asked as it wants to be, MetricX as its definition has it."""

import json
import sys

import pytest
import torch

from kd_plugin.corpus.translations import Translations
from kd_plugin.files.atomic import digest_of_bytes
from tests.unit.sentencepiece_models import sentences, train
from tests.unit.test_score import RECORDS
from tests.unit.translation_folders import counts_of, record, records_of, refusal, run_verb, write_folder

# stands in for COMET's library, in worker processes too: a "model" is a factor, and scores by lengths
STAND_IN = """
import types
__version__ = "9.9"

def download_model(name):
    if name != "Unbabel/wmt22-cometkiwi-da":
        raise KeyError(f"Model '{name}' not supported by COMET.")
    return __file__.replace("__init__.py", "model.ckpt")

def load_from_checkpoint(path):
    factor = float(open(path).read())

    def predict(samples, batch_size, gpus, progress_bar):
        assert batch_size == 16 and gpus == 0 and not progress_bar
        assert all(set(sample) == {"src", "mt"} for sample in samples)
        return types.SimpleNamespace(scores=[factor * len(s["mt"]) + len(s["src"]) for s in samples])

    return types.SimpleNamespace(predict=predict, requires_references=lambda: "with_references" in str(path))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translations") / "in"
    write_folder(folder, RECORDS, input_lines=40)
    return folder


@pytest.fixture
def comet(tmp_path, monkeypatch):
    package = tmp_path / "stand_in" / "comet"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "model.ckpt").write_text("0.01")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=":")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "comet", raising=False)
    yield package
    sys.modules.pop("comet", None)


def score(folder, output, metric, *flags):
    run_verb("score", folder, "--metric", metric, "--output", output, *flags)


def scores_of(folder):
    return [h.score for r in records_of(folder) for h in r.hypotheses]


def by_lengths(factor):
    return [factor * len(h.text) + len(r.source) for r in RECORDS for h in r.hypotheses]


def test_comet_kiwi(comet, folder, tmp_path):
    score(folder, tmp_path / "out", "comet-kiwi")
    assert scores_of(tmp_path / "out") == pytest.approx(by_lengths(0.01))
    identity = Translations(tmp_path / "out").manifest.identity
    assert identity.pop("input") == Translations(folder).manifest.digest()
    assert identity == {
        "verb": "score", "metric": "COMET", "model": "Unbabel/wmt22-cometkiwi-da", "version": "9.9", "batch_size": 16,
        "model_sha256": digest_of_bytes(b"0.01"),
    }  # fmt: skip


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_comet_model_of_ones_own_in_one_process_and_in_two(comet, folder, tmp_path, is_folder):
    model = tmp_path / "model" / "checkpoints" / "model.ckpt"
    model.parent.mkdir(parents=True)
    model.write_text("-2")
    score(folder, tmp_path / "out", model.parents[1] if is_folder else model, "--workers", 1 + is_folder)
    assert scores_of(tmp_path / "out") == by_lengths(-2)
    identity = Translations(tmp_path / "out").manifest.identity
    assert (identity["model"], identity["model_sha256"]) == ("model.ckpt", digest_of_bytes(b"-2"))


def test_another_model_does_not_go_on_with_the_first_one_s(comet, folder, tmp_path, capsys):
    score(folder, tmp_path / "out", "comet-kiwi", "--num-shards", 2)
    (comet / "model.ckpt").write_text("0.02")
    again = ["score", folder, "--metric", "comet-kiwi", "--output", tmp_path / "out", "--num-shards", 2]
    assert "with other options" in refusal(capsys, *again, "--shard-id", 1)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("kiwi", "--metric kiwi: no such metric or file"),
        ("Some/other", "not supported by COMET"),
        ("{tmp}/with_references.ckpt", "compares translations with references"),
        ("{tmp}/nan.ckpt", "NaN or infinite"),
        ("{tmp}/words.ckpt", "cannot be loaded (could not convert string to float"),
        ("{tmp}", "neither a MetricX model (config.json) nor a COMET model"),
        ("google/metricx-23-large-v2p0", "compares translations with references"),
    ],
)
def test_refusals(comet, folder, tmp_path, capsys, metric, message):
    for name, content in (("with_references", "1"), ("nan", "nan"), ("words", "one")):
        (tmp_path / f"{name}.ckpt").write_text(content)
    metric = metric.format(tmp=tmp_path)
    assert message in refusal(capsys, "score", folder, "--metric", metric, "--output", tmp_path / "out")
    assert not list((tmp_path / "out").glob("shard*")) and not (tmp_path / "out" / "manifest.json").exists()


def test_a_metric_is_no_output(comet, folder, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.ckpt").write_text("1")
    assert "would overwrite --metric" in refusal(capsys, "score", folder, "--metric", tmp_path, "--output", tmp_path)


def test_without_the_library_the_extra_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    error = refusal(capsys, "score", folder, "--metric", "comet-kiwi", "--output", tmp_path / "out")
    assert "COMET is not installed. Remedy: pip install unbabel-comet" in error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def metricx(tmp_path_factory):
    """(folder, model): of mT5's own class and number of symbols, but tiny, and nobody has trained it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("metricx") / "model"
    folder.mkdir()
    spm = train(folder / "s.spm", sentences("en") + sentences("de"), 200, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    transformers.T5Tokenizer(str(spm), extra_ids=0, legacy=False).save_pretrained(str(folder))
    torch.manual_seed(5)
    config = transformers.MT5Config(
        vocab_size=250112, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2
    )
    model = transformers.MT5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that answers differ, and lie on both sides of 0 and 25
            parameter.mul_(3)
        model.lm_head.weight[250089].normal_(0, 9)
    model.save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MT5ForRegression"]}))
    return folder, model.double(), transformers.AutoTokenizer.from_pretrained(str(folder))


def predicted(metricx, text):
    """The prediction for one input, as MetricX' authors define it, in float64."""
    _, model, tokenizer = metricx
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert int(ids[0, -1]) == tokenizer.eos_token_id
    logits = model(input_ids=ids[:, :-1], decoder_input_ids=torch.tensor([[0]])).logits
    return min(25.0, max(0.0, float(logits[0, 0, 250089])))


PAIRS = [(source, text) for source, text in zip(sentences("en")[:12], sentences("de")[:12])]


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_metricx_is_minus_the_predicted_error(metricx, tmp_path, batch_size):
    write_folder(tmp_path / "in", [record(at, source, text, "") for at, (source, text) in enumerate(PAIRS)])
    flags = ["--batch-size", batch_size]
    score(tmp_path / "in", tmp_path / "out", metricx[0], *flags)
    expected = [-predicted(metricx, f"source: {s} candidate: {t}") for s, text in PAIRS for t in (text, "")]
    assert scores_of(tmp_path / "out") == pytest.approx(expected, abs=1e-3)
    assert min(expected) == -25 and max(expected) == 0 and len(set(expected)) > 4
    identity = Translations(tmp_path / "out").manifest.identity
    assert (identity["metric"], identity["batch_size"]) == ("MetricX", batch_size)


def test_metricx_23_qe_reads_the_translation_first(metricx, tmp_path):
    write_folder(tmp_path / "in", [record(at, *pair) for at, pair in enumerate(PAIRS)])
    (tmp_path / "metricx-23-qe-large").symlink_to(metricx[0])
    score(tmp_path / "in", tmp_path / "out", tmp_path / "metricx-23-qe-large")
    expected = [-predicted(metricx, f"candidate: {text} source: {source}") for source, text in PAIRS]
    assert scores_of(tmp_path / "out") == pytest.approx(expected, abs=1e-3)


def test_what_metricx_cannot_read_is_left_out_and_counted(metricx, tmp_path):
    (tmp_path / "metricx-23-qe").symlink_to(metricx[0])
    tokenizer = metricx[2]
    text = PAIRS[0][1]
    while len(tokenizer(f"candidate: {text} source: a")["input_ids"]) <= 1024:
        text += " " + PAIRS[1][1]
    write_folder(tmp_path / "in", [record(0, "a", text, "b")])
    score(tmp_path / "in", tmp_path / "out", tmp_path / "metricx-23-qe")
    assert counts_of(tmp_path / "out") == {"dropped_too_long": 1}
    assert [[h.text for h in r.hypotheses] for r in records_of(tmp_path / "out")] == [["b"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MT5ForConditionalGeneration"]}, "is an mT5 that generates text, not MetricX"),
        ({"model_type": "t5"}, "is a model of the type t5, not MetricX"),
        ({"num_layers": 3}, "it lacks weights of a MetricX model"),
        (None, "config.json cannot be read"),
    ],
)
def test_no_metricx(metricx, folder, tmp_path, capsys, change, message):
    other = tmp_path / "model"
    other.mkdir()
    for path in metricx[0].iterdir():
        (other / path.name).symlink_to(path)
    content = json.loads((metricx[0] / "config.json").read_text())
    (other / "config.json").unlink()
    (other / "config.json").write_text("[" if change is None else json.dumps({**content, **change}))
    assert message in refusal(capsys, "score", folder, "--metric", other, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_metricx_is_fetched_by_name(metricx, tmp_path, capsys, monkeypatch):
    """From the hub, which is stood in for here; where it does not answer, nothing is begun."""
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: asked.append(name) or str(metricx[0]))
    write_folder(tmp_path / "in", [record(0, *PAIRS[0])])
    score(tmp_path / "in", tmp_path / "out", "metricx")
    assert asked == ["google/metricx-24-hybrid-large-v2p6"]
    assert Translations(tmp_path / "out").manifest.identity["model"] == asked[0]

    def unreachable(name):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    error = refusal(capsys, "score", tmp_path / "in", "--metric", "metricx", "--output", tmp_path / "other")
    assert "cannot open it (OSError: no network)" in error and not (tmp_path / "other").exists()


def test_metricx_23_with_references_is_refused(metricx, folder, tmp_path, capsys):
    (tmp_path / "metricx-23-large").symlink_to(metricx[0])
    error = refusal(capsys, "score", folder, "--metric", tmp_path / "metricx-23-large", "--output", tmp_path / "out")
    assert "compares translations with references" in error
