"""Every architecture of fairseq that translates, through every verb: what fairseq gives, or a refusal in words."""

import argparse
import json
import random
from typing import Any, List, NamedTuple

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, models
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.data.language_pair_dataset import collate
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import register_model_architecture
from fairseq.models.transformer import base_architecture
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.cache.store import open_stores
from kd_plugin.cli import main
from kd_plugin.curate.by_model import SymbolScorer
from kd_plugin.decoding.base import Settings
from kd_plugin.decoding.fairseq import FairseqDecoder, open_checkpoints
from kd_plugin.decoding.models import open_model, translate
from kd_plugin.errors import KDPluginError
from kd_plugin.export.safetensors_model import CONFIG, WEIGHTS
from kd_plugin.teachers.fairseq import load_teacher
from kd_plugin.teachers.opening import open_teacher
from tests.support import MODEL, asked, load, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries

EOS, PAD = 2, 1
LANGS = ["-s", "en", "-t", "de"]
SIZES = MODEL[2:]
LSTM = [
    "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--encoder-hidden-size", 16, "--decoder-hidden-size", 16,
    "--decoder-out-embed-dim", 16,
]  # fmt: skip
FCONV = ["--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--decoder-out-embed-dim", 8]
LIGHTCONV = [
    *SIZES, "--encoder-layers", 2, "--decoder-layers", 2, "--encoder-conv-dim", 16, "--decoder-conv-dim", 16,
    "--encoder-kernel-size-list", "[3]",
]  # fmt: skip


@register_model_architecture("transformer", "transformer_of_a_test_with_projected_output")
def projected_output(args):
    args.decoder_output_dim = 12
    base_architecture(args)


@register_model_architecture("transformer", "transformer_of_a_test_with_adaptive_input")
def adaptive_input(args):
    args.adaptive_input, args.adaptive_softmax_cutoff = True, "10,20"
    base_architecture(args)


ARCHITECTURES = {
    "lstm": ["--arch", "lstm", *LSTM],
    "lstm, bidirectional, two layers of other sizes": [
        "--arch", "lstm", *LSTM, "--encoder-bidirectional", "--encoder-layers", 2, "--decoder-layers", 2,
        "--decoder-hidden-size", 24, "--decoder-embed-dim", 12,
    ],
    "lstm, adaptive softmax": [
        "--arch", "lstm", *LSTM, "--criterion", "adaptive_loss", "--adaptive-softmax-cutoff", "10,20",
    ],
    "fconv": ["--arch", "fconv", *FCONV, "--encoder-layers", "[(16, 3)] * 2", "--decoder-layers", "[(16, 3)] * 2"],
    "fconv, even kernels, attention in one layer": [
        "--arch", "fconv", *FCONV, "--encoder-layers", "[(16, 4), (24, 2)]", "--decoder-layers", "[(16, 2), (24, 4)]",
        "--decoder-attention", "[True, False]",
    ],
    "lightconv": [
        "--arch", "lightconv", *LIGHTCONV, "--decoder-kernel-size-list", "[5]", "--encoder-conv-type", "lightweight",
        "--decoder-conv-type", "lightweight",
    ],
    # with targets shorter than the kernel fairseq's own answers depend on the padding: its softmax is over what is left
    "lightconv, dynamic, shared": [
        "--arch", "lightconv", *LIGHTCONV, "--decoder-kernel-size-list", "[2]", "--share-all-embeddings",
    ],
    "transformer_align": ["--arch", "transformer_align", *SIZES],
    "projected output": ["--arch", "transformer_of_a_test_with_projected_output", *SIZES],
    "adaptive input": ["--arch", "transformer_of_a_test_with_adaptive_input", *SIZES],
    "adaptive softmax": ["--arch", "transformer", *SIZES, "--adaptive-softmax-cutoff", "10,20"],
    "few learned positions, encoder of another width": [
        "--arch", "transformer", *SIZES, "--encoder-learned-pos", "--decoder-learned-pos", "--encoder-embed-dim", 32,
        "--max-source-positions", 12, "--max-target-positions", 12,
    ],
    "cross self attention": ["--arch", "transformer", *SIZES, "--cross-self-attention"],
    "bart": ["--arch", "bart_base", *SIZES],
}  # fmt: skip


def sentence(seed: int) -> List[str]:
    draw = random.Random(seed)
    return draw.choices(WORDS, k=draw.randint(1, 9))


SOURCES, TARGETS = ([sentence(first + i) for i in range(12)] for first in (0, 100))


class Made(NamedTuple):
    path: Any
    model: Any  # as fairseq built it, not read by the plugin


def make(path, data, *flags, seed=1) -> Made:
    """Untrained, with weights so large that its translations differ."""
    model = make_checkpoint(path, data, *LANGS, *flags, seed=seed)
    recurrent = "lstm" in flags
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.2 * torch.randn_like(weight))
            elif not name.endswith("weight_g"):
                weight.mul_(7.0 if recurrent else 2.5)
    state = load(path)
    history = {"criterion_name": "LabelSmoothedCrossEntropyCriterion", "lr_scheduler_state": {"best": None}}
    state.update(model=model.state_dict(), extra_state={}, optimizer_history=[history])  # so that fairseq reads it
    torch.save(state, str(path))
    return Made(path, model)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of binarised data, with the splits train and valid, which are the same."""
    folder = write_dictionaries(tmp_path_factory.mktemp("data"), WORDS)
    for split in ("train", "valid"):
        for lang, sentences in (("en", SOURCES), ("de", TARGETS)):
            builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.en-de.{lang}.bin"), dtype=np.uint16)
            for tokens in sentences:
                builder.add_item(torch.tensor(indices(tokens)))
            builder.finalize(str(folder / f"{split}.en-de.{lang}.idx"))
    return folder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request, data):
    name = "".join(letter if letter.isalnum() else "_" for letter in request.param)
    return make(data / f"{name}.pt", data, *ARCHITECTURES[request.param])


def indices(tokens):
    return [WORDS.index(token) + 4 for token in tokens] + [EOS]


def stock_task(data):
    return TranslationTask.setup_task(TranslationConfig(data=str(data), source_lang="en", target_lang="de"))


def searched(data, paths, settings):
    """[(text, score), …] of each sentence by fairseq's own reading and search, one sentence after the other."""
    task = stock_task(data)
    members, _ = checkpoint_utils.load_model_ensemble(list(map(str, paths)), task=task)
    generator = task.build_generator(members, GenerationConfig(**settings._asdict()))
    found = []
    for tokens in SOURCES:
        source = torch.tensor([indices(tokens)])
        sample = {"net_input": {"src_tokens": source, "src_lengths": torch.tensor([source.size(1)])}}
        (answers,) = task.inference_step(generator, members, sample)
        texts = [(task.target_dictionary.string(answer["tokens"]), float(answer["score"])) for answer in answers]
        found.append(texts[: settings.nbest])
    return found


@torch.no_grad()
def log_probabilities(model, source, target):
    """(target length, vocabulary) of one sentence pair without any padding."""
    source, target = indices(source), indices(target)
    output = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[EOS, *target[:-1]]]))
    return model.get_normalized_probs(output, log_probs=True)[0]


def batch():
    pairs = [
        {"id": i, "source": torch.tensor(indices(source)), "target": torch.tensor(indices(target))}
        for i, (source, target) in enumerate(zip(SOURCES, TARGETS))
    ]
    return collate(pairs, PAD, EOS, left_pad_source=True, left_pad_target=False)


def assert_found(answers, expected):
    for answer, wanted in zip(answers, expected):
        assert [" ".join(tokens) for tokens, _ in answer] == [text for text, _ in wanted]
        assert [score for _, score in answer] == pytest.approx([score for _, score in wanted], abs=1e-4)


def test_a_batch_is_translated_as_fairseq_translates_each_sentence(made, data):
    settings = Settings(beam=3, nbest=2, max_len_b=10)
    expected = searched(data, [made.path], settings)
    assert len({round(score, 3) for (_, score), _ in expected}) > 5  # else nothing is compared
    decoder = FairseqDecoder(open_checkpoints(str(made.path)), settings, torch.device("cpu"))
    assert_found(decoder(SOURCES), expected)
    translated = translate(open_model(str(made.path), settings).decoder, SOURCES, max_tokens=40).hypotheses
    assert [" ".join(tokens) for tokens in translated] == [texts[0][0] for texts in expected]


def test_a_batch_is_scored_as_each_pair_alone(made):
    scores = SymbolScorer(open_checkpoints(str(made.path)), torch.device("cpu"))(list(zip(SOURCES, TARGETS)))
    expected = []
    for source, target in zip(SOURCES, TARGETS):
        lprobs = log_probabilities(made.model, source, target)
        expected.append(float(lprobs[torch.arange(len(target) + 1), indices(target)].mean()))
    assert scores == pytest.approx(expected, abs=1e-4)


def test_teacher_beside_the_student_and_its_cache_answer_as_for_each_pair_alone(made, data, tmp_path):
    expected = [log_probabilities(made.model, *pair) for pair in zip(SOURCES, TARGETS)]
    sample = batch()
    rows = sample["target"].flatten().ne(PAD).nonzero().squeeze(1)
    teacher = open_teacher(stock_task(data), str(made.path), None, "{}", None, "auto")
    found = asked(teacher, sample, rows, torch.float32).logits.log_softmax(-1)
    torch.testing.assert_close(found, torch.cat([expected[i] for i in sample["id"]]), rtol=1e-4, atol=1e-4)

    flags = ["--k", len(WORDS) + 4, "--max-tokens", 40, "--subset", "valid"]
    assert run("cache", data, "--teacher-path", made.path, "--cache-dir", tmp_path / "cache", *flags) == 0
    (store,) = open_stores(tmp_path / "cache")
    records = store.read(np.arange(store.manifest.tokens))
    stored = torch.empty(len(records.ids), len(WORDS) + 4)
    stored.scatter_(1, torch.from_numpy(records.ids), torch.from_numpy(records.lprobs))
    torch.testing.assert_close(stored, torch.cat(expected), rtol=2e-3, atol=2e-3)


def test_exported_checkpoint_and_safetensors_are_the_same_model(made, data, tmp_path):
    if type(made.model).__name__ != "BARTModel":  # see below
        assert run("export", made.path, "--format", "fairseq", "--output", tmp_path / "fairseq") == 0
        exported = tmp_path / "fairseq" / "model.pt"
        assert_plain(load(exported))  # torch reads it where the plugin is not
        ((stock,), _) = checkpoint_utils.load_model_ensemble([str(exported)], task=stock_task(data))
        assert_same_model(stock, made.model)
    assert_safetensors(made, data, tmp_path / "safetensors")


def assert_plain(value):
    """Nothing but what torch reads with weights_only."""
    if isinstance(value, dict):
        for inner in value.values():
            assert_plain(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            assert_plain(inner)
    else:
        assert value is None or isinstance(value, (bool, int, float, str, torch.Tensor)), value


def run(*arguments):
    return main(list(map(str, arguments)))


def test_ensemble_of_different_architectures(data):
    flags = [ARCHITECTURES["lstm"], ARCHITECTURES["fconv"], ["--arch", "transformer", *SIZES]]
    members = [make(data / f"member{i}.pt", data, *each, seed=i) for i, each in enumerate(flags)]
    checkpoints = open_checkpoints(":".join(str(member.path) for member in members))
    settings = Settings(beam=3, max_len_b=10)
    expected = searched(data, [member.path for member in members], settings)
    assert_found(FairseqDecoder(checkpoints, settings, torch.device("cpu"))(SOURCES), expected)
    scores = SymbolScorer(checkpoints, torch.device("cpu"))(list(zip(SOURCES, TARGETS)))
    for score, source, target in zip(scores, SOURCES, TARGETS):
        each = torch.stack([log_probabilities(member.model, source, target).exp() for member in members])
        mixed = each.mean(0)[torch.arange(len(target) + 1), indices(target)].log().mean()
        assert score == pytest.approx(float(mixed), abs=1e-4)


# --- what translates otherwise, or not at all

NO_TRANSLATION = {
    "nonautoregressive_transformer": "never gives the next token's probability",
    "levenshtein_transformer": "never gives the next token's probability",
    "cmlm_transformer": "never gives the next token's probability",
    "insertion_transformer": "never gives the next token's probability",
    "transformer_lm": "is a language model",
    "fconv_lm": "is a language model",
    "lstm_lm": "is a language model",
    "roberta_base": "is an encoder without a decoder",
    "multilingual_transformer": "is several models",
    "s2t_transformer": "reads or writes audio",
    "transformer_from_pretrained_xlm": "different special symbols",
}
TASKS = {
    "translation_from_pretrained_xlm": "different special symbols",
    "denoising": "to restore corrupted text",
}
VERBS = {
    "decode": ["decode", "--input", "{text}", "--path", "{path}", "--output", "{out}", *LANGS],
    "cache": ["cache", "{data}", "--teacher-path", "{path}", "--cache-dir", "{out}"],
    "evaluate": ["evaluate", "--model", "m={path}", "--test", "t={text},{text}", "--output", "{out}", *LANGS],
    "init": ["init", "{path}", "--output", "{out}/student.pt", *LANGS],
    "fairseq": ["export", "{path}", "--format", "fairseq", "--output", "{out}", *LANGS],
    "safetensors": ["export", "{path}", "--format", "safetensors", "--output", "{out}", *LANGS],
    "ctranslate2": ["export", "{path}", "--format", "ctranslate2", "--output", "{out}", *LANGS],
}


def described(path, arch, task="translation", **options):
    """A checkpoint of which only the configuration matters."""
    cfg = {"model": {"_name": arch, **options}, "task": {"_name": task, "source_lang": "en", "target_lang": "de"}}
    torch.save({"args": None, "cfg": cfg, "model": {"encoder.version": torch.ones(1)}}, str(path))
    return path


def refusal(arguments, data, path, tmp_path, capsys):
    """The line that the verb refuses with; it has written nothing."""
    (tmp_path / "text").write_text("word1 word2\n")
    places = {"text": tmp_path / "text", "path": path, "out": tmp_path / "out", "data": data}
    assert run(*(argument.format(**places) for argument in arguments)) == 1
    assert not list((tmp_path / "out").glob("*"))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("kd-plugin: error:"))
    return line


@pytest.mark.parametrize("arch", NO_TRANSLATION)
def test_what_is_no_translation_model_is_refused_in_words(arch, data, tmp_path, capsys):
    path = described(data / "described.pt", arch)
    message = f"{path}: its architecture {arch!r}"
    with pytest.raises(KDPluginError) as refused:
        load_teacher(str(path), stock_task(data))
    assert message in str(refused.value) and NO_TRANSLATION[arch] in str(refused.value)
    if arch in ("levenshtein_transformer", "transformer_lm"):
        for arguments in VERBS.values():
            line = refusal(arguments, data, path, tmp_path, capsys)
            assert message in line and NO_TRANSLATION[arch] in line and "Remedy: " in line


@pytest.mark.parametrize("task", TASKS)
def test_task_with_other_sentences_is_refused(task, data, tmp_path, capsys):
    path = described(data / "described.pt", "transformer", task)
    line = refusal(VERBS["decode"], data, path, tmp_path, capsys)
    assert f"--task {task}" in line and TASKS[task] in line


@pytest.mark.parametrize(
    "arch, option, code",
    [
        ("fconv", "encoder_layers", "__import__('os').mkdir('{ran}') or [(16, 3)]"),
        ("fconv", "decoder_attention", " (lambda: __import__('os').mkdir('{ran}'))()"),
        ("fconv", "decoder_layers", "[0 for nn.Linear in [torch.os.mkdir]]"),
        ("lstm", "decoder_attention", "__import__('os').mkdir('{ran}')"),
        ("transformer", "adaptive_softmax_cutoff", "[__import__('os').mkdir('{ran}')]"),
    ],
)
def test_options_that_are_code_are_not_run(arch, option, code, data, tmp_path, capsys):
    """fairseq's models hand some options to `eval`."""
    path = described(data / "described.pt", arch, **{option: code.format(ran=tmp_path / "ran")})
    linear = torch.nn.Linear
    for verb in VERBS if arch == "lstm" else ["decode"]:
        line = refusal(VERBS[verb], data, path, tmp_path, capsys)
        assert f"option {option} is" in line
    assert not (tmp_path / "ran").exists() and torch.nn.Linear is linear


def test_options_that_name_another_checkpoint_are_refused(data, tmp_path, capsys):
    path = described(
        data / "described.pt", "fconv_self_att", pretrained="True", pretrained_checkpoint="other_checkpoint.pt"
    )
    line = refusal(VERBS["decode"], data, path, tmp_path, capsys)
    assert "pretrained_checkpoint names another checkpoint, other_checkpoint.pt" in line


@pytest.mark.parametrize(
    "flags, reason",
    [
        # it repeats the only size of a list for each layer
        ([*ARCHITECTURES["lightconv"], "--encoder-layers", 1], "unsupported operand type(s) for *: 'ListConfig'"),
        (["--arch", "bart_base", *SIZES], "invalid argument task"),
    ],
    ids=["lightconv of one layer", "bart"],
)
def test_what_fairseq_builds_from_flags_alone_is_exported_as_safetensors_only(flags, reason, data, tmp_path, capsys):
    made = make(data / "of_flags.pt", data, *flags)
    line = refusal(VERBS["fairseq"], data, made.path, tmp_path, capsys)
    assert "but not from a configuration of plain values" in line and reason in line
    assert_safetensors(made, data, tmp_path / "out")


def assert_safetensors(made, data, folder):
    """That they, with the sizes beside them, are the same model."""
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    assert run("export", made.path, "--format", "safetensors", "--output", folder) == 0
    config = json.loads((folder / CONFIG).read_text())
    options = argparse.Namespace(_name=config["architecture"], **config["options"])
    rebuilt = models.build_model(options, stock_task(data))
    weights = safetensors.load_file(str(folder / WEIGHTS))
    rebuilt.load_state_dict({**weights, **{name: weights[first] for name, first in config["tied"].items()}})
    assert_same_model(rebuilt, made.model)


def assert_same_model(found, expected):
    for pair in zip(SOURCES, TARGETS):
        answers = [log_probabilities(model.eval(), *pair) for model in (found, expected)]
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
