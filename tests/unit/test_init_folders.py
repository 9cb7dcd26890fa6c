"""`kd-plugin init` from Hugging Face folders: the copy gives the logits of transformers itself."""

import json
import shutil

import pytest
import torch
from fairseq.data import Dictionary

from kd_plugin import cli
from tests.support import load
from tests.unit.huggingface_folders import make_folder
from tests.unit.teachers_to_cut import init, make_teacher, manifest, read_by_fairseq

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("google.protobuf", reason="protobuf is not installed")

LANGUAGES = ["-s", "en", "-t", "de"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, and the dictionaries that kd-plugin vocabulary makes of it."""
    made = {}

    def folder(kind, **changes):
        key = kind, *changes.items()
        if key not in made:
            place = tmp_path_factory.mktemp("folder")
            path = make_folder(kind, place / "teacher")
            if changes:
                change(path, **changes)
            joined = [] if "two" in kind else ["--joined-dictionary"]
            command = ["vocabulary", path, "--output", place / "data", *LANGUAGES, *joined]
            assert cli.main(list(map(str, command))) == 0
            made[key] = path, place / "data"
        return made[key]

    return folder


def change(path, bias=None, **config):
    """Rewrite a folder's model with another configuration or another bias of its logits."""
    old = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(path))
    for name, value in config.items():
        setattr(old.config, name, value)
    if bias is not None:
        old.final_logits_bias.mul_(bias)
    old.save_pretrained(str(path))


def own_logits(path, dictionaries, source, target):
    """What transformers gives for sentences of symbols, for the columns of the student's symbols.

    The rows of the student's other special symbols are left out.
    """
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(path)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
    tables = [dict(tokenizer.get_vocab())] * 2
    if getattr(tokenizer, "separate_vocabs", False):
        tables = [tokenizer.encoder, tokenizer.target_encoder]
    ids = [[table.get(symbol, -1) for symbol in d.symbols] for table, d in zip(tables, dictionaries)]
    for side, dictionary in zip(ids, dictionaries):
        side[dictionary.eos()] = tokenizer.eos_token_id
        side[dictionary.unk()] = tokenizer.unk_token_id
    rows = [torch.tensor(side) for side in ids]
    previous = rows[1][target]
    previous[:, 0] = model.config.decoder_start_token_id
    pad = model.config.pad_token_id
    mask = source.ne(1)
    with torch.no_grad():
        found = model(
            input_ids=rows[0][source].masked_fill(~mask, pad), attention_mask=mask.long(), decoder_input_ids=previous
        ).logits
    columns = torch.tensor([at for at, index in enumerate(ids[1]) if index >= 0])
    return found[..., rows[1][columns]], columns


def sentences(sizes):
    """Source padded on the right; all targets of one length."""
    generator = torch.Generator().manual_seed(5)
    source, target = (torch.randint(4, size, (3, 9), generator=generator) for size in sizes)
    source[:, -1], target[:, 0] = 2, 2
    source[1, 6:], source[1, 5] = 1, 2
    return source, target


@pytest.mark.parametrize("kind", ["marian", "marian, two vocabularies", "marian, several targets", "m2m100", "nllb"])
def test_the_full_copy_gives_the_logits_of_transformers(kind, folders, tmp_path, capsys):
    path, data = folders(kind)
    assert init(path, "--output", tmp_path / "student.pt", "--dict-dir", data, *LANGUAGES) == 0
    said = capsys.readouterr().out
    assert ("adds a bias" in said) == kind.startswith("marian") and "0 unknown" not in said
    names = [data / f"dict.{language}.txt" for language in ("en", "de")]
    dictionaries = [Dictionary.load(str(name if name.is_file() else data / "dict.txt")) for name in names]
    source, target = sentences([len(dictionary) for dictionary in dictionaries])
    wanted, columns = own_logits(path, dictionaries, source, target)
    for name in names:  # fairseq wants both
        if not name.is_file():
            shutil.copy(data / "dict.txt", name)
    student = read_by_fairseq(tmp_path / "student.pt", data)
    with torch.no_grad():
        found = student(source, source.ne(1).sum(1), target)[0][..., columns]
    assert len(columns) >= len(dictionaries[1]) - 2
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
    described = manifest(tmp_path / "student.pt")
    assert described["teacher"]["copy_differs_by"] < 1e-5 and described["symbols"]["target"]["unknown"] == []


def test_marian_without_a_bias_keeps_its_embeddings_tied(folders, tmp_path, capsys):
    path, data = folders("marian", bias=0)
    assert init(path, "--output", tmp_path / "student.pt", "--dict-dir", data, *LANGUAGES) == 0
    assert "--share-all-embeddings" in capsys.readouterr().out
    state = load(tmp_path / "student.pt")["model"]
    assert torch.equal(state["encoder.embed_tokens.weight"], state["decoder.output_projection.weight"])


def test_a_folder_is_cut_like_a_checkpoint(folders, tmp_path, capsys):
    path, data = folders("marian")
    sizes = ["--decoder-layers", "1,", "--embed-dim", 8, "--ffn-dim", 9, "--heads", 1, "--max-source-positions", 30]
    assert init(path, "--output", tmp_path / "student.pt", "--dict-dir", data, *LANGUAGES, *sizes) == 0
    state = load(tmp_path / "student.pt")["model"]
    assert state["encoder.embed_positions.weight"].shape == (32, 8)
    assert state["decoder.layers.0.fc1.weight"].shape == (9, 8) and "decoder.layers.1.fc1.weight" not in state
    flags = capsys.readouterr().out
    assert "--encoder-learned-pos" in flags and "--max-source-positions 30" in flags


@pytest.mark.parametrize("kind", ["mbart", "t5", "madlad"])
def test_other_kinds_are_refused_in_words(kind, tmp_path, capsys):
    path = make_folder(kind, tmp_path / "teacher")
    (tmp_path / "dict.txt").write_text("a 1\n")
    assert init(path, "--output", tmp_path / "x.pt", "--dict-dir", tmp_path, *LANGUAGES) == 1
    message = capsys.readouterr().err
    assert "MarianMT (OPUS-MT), M2M100 and NLLB, not from" in message and "Remedy: " in message
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("config, says", [({"activation_function": "swish"}, "'swish'")])
def test_what_fairseq_cannot_compute_is_refused_with_the_reason(config, says, folders, tmp_path, capsys):
    path, data = folders("marian", **config)
    assert init(path, "--output", tmp_path / "x.pt", "--dict-dir", data, *LANGUAGES) == 1
    message = capsys.readouterr().err
    assert says in message and "fairseq's stock transformer" in message and not (tmp_path / "x.pt").exists()


def test_swish_is_approximated_on_request(folders, tmp_path, capsys):
    path, data = folders("marian", activation_function="swish", bias=0)
    approximate = ["--dict-dir", data, *LANGUAGES, "--approximate-activation"]
    assert init(path, "--output", tmp_path / "student.pt", *approximate) == 0
    said = capsys.readouterr().out
    assert "--activation-fn gelu" in said and "swish is approximated by a scaled gelu: logits of random" in said
    # all but the activation was checked exactly
    assert manifest(tmp_path / "student.pt")["teacher"]["copy_differs_by"] < 1e-5
    dictionary = Dictionary.load(str(data / "dict.txt"))
    source, target = sentences([len(dictionary)] * 2)
    wanted, columns = own_logits(path, [dictionary] * 2, source, target)
    for language in ("en", "de"):
        shutil.copy(data / "dict.txt", tmp_path / f"dict.{language}.txt")
    with torch.no_grad():
        found = read_by_fairseq(tmp_path / "student.pt", tmp_path)(source, source.ne(1).sum(1), target)[0][..., columns]
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert 1e-5 < error < 0.05
    x = torch.linspace(-20, 20, 4001)
    from kd_plugin.initialise.activations import ApproximateSwish

    assert float((ApproximateSwish()(x) - torch.nn.functional.silu(x)).abs().max()) < 0.035
    other, _ = make_teacher(tmp_path / "fairseq")
    assert init(other, "--output", tmp_path / "x.pt", "--approximate-activation") == 1
    assert "--approximate-activation: is for Hugging Face folders" in capsys.readouterr().err


def test_a_copy_that_gives_other_logits_is_refused(folders, tmp_path, capsys):
    """A layer norm on embeddings, say, which this version of the library would not have announced."""
    path, data = folders("m2m100")
    broken = tmp_path / "teacher"
    shutil.copytree(path, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "scale_embedding": False}))
    assert init(broken, "--output", tmp_path / "right.pt", "--dict-dir", data, *LANGUAGES) == 0
    from kd_plugin.initialise import from_huggingface

    own = from_huggingface._options
    try:
        from_huggingface._options = lambda config: {**own(config), "no_scale_embedding": False}
        assert init(broken, "--output", tmp_path / "x.pt", "--dict-dir", data, *LANGUAGES) == 1
    finally:
        from_huggingface._options = own
    assert "the copy's logits differ by" in capsys.readouterr().err and not (tmp_path / "x.pt").exists()


def test_a_folder_needs_dictionaries_and_none_of_a_checkpoints_flags(folders, tmp_path, capsys):
    path, data = folders("m2m100")
    for flags, says in (
        ([], "--dict-dir with the student's"),
        (["--dict-dir", data, "--teacher-dict-dir", data], "--teacher-dict-dir: is for fairseq checkpoints"),
        (["--dict-dir", data, "--user-dir", tmp_path], "--user-dir"),
    ):
        assert init(path, "--output", tmp_path / "x.pt", *LANGUAGES, *flags) == 1
        assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
