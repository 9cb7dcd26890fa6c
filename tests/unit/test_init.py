"""`kd-plugin init`: copies, layers, positions, the file that it writes, and what it refuses."""

import pytest
import torch

from kd_plugin.initialise.layers import even_map
from tests.support import MODEL, load, make_checkpoint
from tests.unit.teachers_to_cut import (
    BEFORE,
    LEARNED,
    LENGTHS,
    SHARED,
    SIZES,
    VARIANTS,
    assert_same_logits,
    batch,
    init,
    logits,
    make_teacher,
    manifest,
    read_by_fairseq,
)
from tests.unit.test_teachers import ARCHITECTURES


def assert_refused(capsys, folder, *arguments, says):
    """Quickly, in one line, and without a file."""
    before = sorted(folder.rglob("*"))
    assert init(*arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("kd-plugin: error: ") and "Remedy: " in message and message.count("\n") == 1
    for words in says:
        assert words in message, message
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", VARIANTS)
def test_all_layers_reproduce_the_teachers_logits(name, tmp_path, capsys):
    joined = "separate" not in name
    path, teacher = make_teacher(tmp_path / "teacher", *VARIANTS[name], joined=joined)
    assert init(path, "--output", tmp_path / "student.pt") == 0
    student = read_by_fairseq(tmp_path / "student.pt", tmp_path / "teacher")
    assert_same_logits(student, teacher, batch(34, 34 if joined else 41))
    assert "encoder layers: all of 3" in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["transformer_align", "bart_base"])
def test_all_layers_of_a_subclass_reproduce_the_teachers_logits(arch, tmp_path):
    _, teacher = make_teacher(tmp_path, "--arch", arch, *SIZES[2:], *LENGTHS)
    assert init(tmp_path / "teacher.pt", "--output", tmp_path / "student.pt") == 0
    assert load(tmp_path / "student.pt")["cfg"]["model"]["_name"] == "transformer"
    assert_same_logits(read_by_fairseq(tmp_path / "student.pt", tmp_path), teacher, batch(34))


@pytest.mark.parametrize(
    "teacher, student, kept",
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (12, 3, [0, 6, 11]),
        (6, 3, [0, 2, 5]),
        (6, 2, [0, 5]),
        (6, 1, [0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_layers_are_evenly_spaced_with_the_first_and_the_last(teacher, student, kept):
    assert even_map(teacher, student) == kept


@pytest.mark.parametrize("flags", [SHARED, [*BEFORE], [*LEARNED]], ids=["post-norm", "pre-norm", "learned"])
@pytest.mark.parametrize(
    "encoder, decoder, kept", [(2, 1, ("0,2", "0")), ("1,2", "2,", ("1,2", "2")), ("0,1,2", "0,2", ("0,1,2", "0,2"))]
)
def test_a_cut_of_layers_is_the_one_that_fairseq_makes(flags, encoder, decoder, kept, tmp_path):
    path, _ = make_teacher(tmp_path, *flags)
    assert (
        init(path, "--output", tmp_path / "student.pt", "--encoder-layers", encoder, "--decoder-layers", decoder) == 0
    )
    theirs = read_by_fairseq(path, tmp_path, encoder_layers_to_keep=kept[0], decoder_layers_to_keep=kept[1])
    assert_same_logits(read_by_fairseq(tmp_path / "student.pt", tmp_path), theirs, batch(34), 1e-6)
    assert manifest(tmp_path / "student.pt")["layers"] == {
        side: list(map(int, text.split(","))) for side, text in zip(("encoder", "decoder"), kept)
    }


@pytest.mark.parametrize("side, other", [("encoder", "decoder"), ("decoder", "encoder")])
def test_a_one_sided_cut_leaves_the_other_side_whole(side, other, tmp_path):
    path, teacher = make_teacher(tmp_path, *SHARED)
    assert init(path, "--output", tmp_path / "student.pt", f"--{side}-layers", 1) == 0
    state, whole = load(tmp_path / "student.pt")["model"], teacher.state_dict()
    layers = {name.split(".")[2] for name in state if name.startswith(f"{side}.layers.")}
    assert layers == {"0"}
    names = [name for name in whole if name.startswith(f"{other}.layers.")]
    assert len({name.split(".")[2] for name in names}) == 3 and all(torch.equal(state[n], whole[n]) for n in names)
    assert torch.isfinite(logits(read_by_fairseq(tmp_path / "student.pt", tmp_path), batch(34))).all()


def test_layers_may_come_again_and_in_another_order(tmp_path):
    path, teacher = make_teacher(tmp_path, *SHARED)
    assert init(path, "--output", tmp_path / "student.pt", "--decoder-layers", "2,0,2") == 0
    state, whole = load(tmp_path / "student.pt")["model"], teacher.state_dict()
    for new, old in enumerate((2, 0, 2)):
        assert torch.equal(state[f"decoder.layers.{new}.fc1.weight"], whole[f"decoder.layers.{old}.fc1.weight"])


def test_learned_positions_are_cut_and_sinusoids_are_not_stored(tmp_path, capsys):
    path, teacher = make_teacher(tmp_path, *LEARNED, *LENGTHS)
    flags = ["--max-source-positions", 20, "--max-target-positions", 9]
    assert init(path, "--output", tmp_path / "student.pt", *flags) == 0
    state = load(tmp_path / "student.pt")["model"]
    for side, rows in (("encoder", 22), ("decoder", 11)):
        name = f"{side}.embed_positions.weight"
        assert torch.equal(state[name], teacher.state_dict()[name][:rows])
    student = read_by_fairseq(tmp_path / "student.pt", tmp_path)
    assert student.max_positions() == (20, 9)
    assert_same_logits(student, teacher, batch(34))
    says = ["--max-target-positions 31", "only 30"]
    assert_refused(capsys, tmp_path, path, "--output", tmp_path / "x.pt", "--max-target-positions", 31, says=says)
    other, _ = make_teacher(tmp_path / "other", *SHARED)
    assert init(other, "--output", tmp_path / "long.pt", "--max-source-positions", 2000) == 0
    longer = read_by_fairseq(tmp_path / "long.pt", tmp_path / "other")
    assert longer.max_positions() == (2000, 1024)
    assert not any("embed_positions.weight" in name for name in load(tmp_path / "long.pt")["model"])


@pytest.mark.parametrize("name", ["post-norm, all shared", "post-norm, separate", "learned positions"])
def test_names_shapes_and_size_are_those_of_a_plain_student(name, tmp_path):
    path, _ = make_teacher(tmp_path, *VARIANTS[name], joined=True)
    assert init(path, "--output", tmp_path / "student.pt", "--encoder-layers", 2, "--decoder-layers", 1,
                "--embed-dim", 8, "--ffn-dim", 10, "--heads", 2) == 0  # fmt: skip
    sizes = [
        "--arch", "transformer", "--encoder-layers", 2, "--decoder-layers", 1, "--encoder-embed-dim", 8,
        "--decoder-embed-dim", 8, "--encoder-ffn-embed-dim", 10, "--decoder-ffn-embed-dim", 10,
        "--encoder-attention-heads", 2, "--decoder-attention-heads", 2,
    ]  # fmt: skip
    plain = make_checkpoint(tmp_path / "plain.pt", tmp_path, "-s", "en", "-t", "de", *sizes, *VARIANTS[name])
    state = load(tmp_path / "student.pt")["model"]
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert manifest(tmp_path / "student.pt")["parameters"] == sum(p.numel() for p in plain.parameters())
    # tied weights are stored once
    assert (tmp_path / "student.pt").stat().st_size <= (tmp_path / "plain.pt").stat().st_size * 1.1


def test_the_manifest_names_the_teacher_and_what_was_done(tmp_path, capsys):
    from kd_plugin.files.atomic import sha256_of

    path, _ = make_teacher(tmp_path, *SHARED)
    assert init(path, "--output", tmp_path / "a.student.pt", "--embed-dim", 8, "--ffn-dim", 12, "--heads", 2) == 0
    found = manifest(tmp_path / "a.student.pt")
    assert found["teacher"]["sha256"] == sha256_of(path) and found["ranks"]["encoder"] == [16, 8]
    assert len(found["heads"]) == 9 and all(len(kept) == 2 for kept in found["heads"].values())
    assert len(found["units"]) == 6 and all(len(kept) == 12 for kept in found["units"].values())
    assert 0 < found["errors"]["encoder.embed_tokens.weight"] < 1 and 0 < found["kept_energy"]["encoder"] < 1
    said = capsys.readouterr().out
    for words in ("encoder width: 16 → 8", "decoder heads: 2 of 4", "encoder units: 12 of 24", "layer norms recons"):
        assert words in said
    # it says nothing of this machine but where the teacher was
    state = load(tmp_path / "a.student.pt")
    assert str(tmp_path) not in str({key: value for key, value in state.items() if key != "model"})


def test_a_student_of_a_student_is_cut_likewise(tmp_path):
    path, teacher = make_teacher(tmp_path, *SHARED)
    assert init(path, "--output", tmp_path / "one.pt", "--encoder-layers", "0,2") == 0
    assert init(tmp_path / "one.pt", "--output", tmp_path / "two.pt", "--encoder-layers", "1,") == 0
    state, whole = load(tmp_path / "two.pt")["model"], teacher.state_dict()
    assert torch.equal(state["encoder.layers.0.fc1.weight"], whole["encoder.layers.2.fc1.weight"])


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--encoder-layers", "4"], ["--encoder-layers 4", "3 layers"]),
        (["--decoder-layers", "0"], ["--decoder-layers 0", "1 … 3"]),
        (["--decoder-layers", "0,3"], ["no layer 3"]),
        (["--decoder-layers", "two"], ["--decoder-layers two", "not a number"]),
        (["--embed-dim", "32"], ["--embed-dim 32", "is 16 wide"]),
        (["--embed-dim", "10"], ["--embed-dim 10", "4 attention heads", "--heads 1 or 2"]),
        (["--embed-dim", "2"], ["--embed-dim 2", "at least 4"]),
        (["--ffn-dim", "25"], ["--ffn-dim 25", "24 feed-forward units"]),
        (["--heads", "8"], ["--heads 8", "4 attention heads"]),
        (["--heads", "3"], ["--heads 3", "16 dimensions"]),
        (["--decoder-output-dim", "8"], ["tied"]),
        (["--dict-dir", "nowhere"], ["--dict-dir nowhere", "dict.en.txt"]),
        (["--data", "nowhere"], ["--data nowhere", "dict.en.txt"]),
        (["--sentencepiece-model", "nowhere"], ["nowhere"]),
        (["-s", "de", "-t", "en"], ["translates en-de"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else None,
)
def test_impossible_wishes_are_refused_before_anything_is_written(flags, says, tmp_path, capsys):
    path, _ = make_teacher(tmp_path, *SHARED)
    assert_refused(capsys, tmp_path, path, "--output", tmp_path / "new" / "x.pt", *flags, says=says)


def test_nothing_of_the_users_is_overwritten(tmp_path, capsys):
    path, _ = make_teacher(tmp_path, *SHARED)
    teacher = path.read_bytes()
    assert_refused(capsys, tmp_path, path, "--output", path, says=["would overwrite TEACHER"])
    (tmp_path / "old.pt").write_text("mine")
    assert_refused(capsys, tmp_path, path, "--output", tmp_path / "old.pt", says=["already exists"])
    (tmp_path / "new.init.json").write_text("mine too")
    assert_refused(capsys, tmp_path, path, "--output", tmp_path / "new.pt", says=["new.init.json: already exists"])
    assert path.read_bytes() == teacher and (tmp_path / "new.init.json").read_text() == "mine too"


def test_a_failed_write_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    from kd_plugin.initialise import initialise

    path, _ = make_teacher(tmp_path, *SHARED)
    write = initialise.write_output

    def full(target, content, flag, made):
        if target.suffix == ".pt":
            raise initialise.KDPluginError(f"{target}: disk full. Remedy: free some space")
        write(target, content, flag, made)

    monkeypatch.setattr(initialise, "write_output", full)
    assert_refused(capsys, tmp_path, path, "--output", tmp_path / "x.pt", says=["disk full"])


@pytest.mark.parametrize(
    "flags, reason",
    [
        (ARCHITECTURES["lstm"], "its architecture is 'lstm'"),
        (ARCHITECTURES["fconv"], "its architecture is 'fconv'"),
        (
            [*MODEL, "--adaptive-softmax-cutoff", "8,16", "--criterion", "adaptive_loss"],
            "adaptive softmax",
        ),
        ([*MODEL, "--cross-self-attention"], "source and target at once"),
        ([*MODEL, "--no-cross-attention"], "does not read the source"),
    ],
)
def test_other_architectures_are_refused_in_words(flags, reason, tmp_path, capsys):
    make_teacher(tmp_path)
    make_checkpoint(tmp_path / "other.pt", tmp_path, "-s", "en", "-t", "de", *flags)
    says = ["other.pt", reason, "random weights"]
    assert_refused(capsys, tmp_path, tmp_path / "other.pt", "--output", tmp_path / "x.pt", says=says)


def test_a_damaged_teacher_and_a_changed_forward_are_refused(tmp_path, capsys, monkeypatch):
    from fairseq.models.transformer import TransformerDecoderBase

    path, _ = make_teacher(tmp_path, *SHARED)
    (tmp_path / "half.pt").write_bytes(path.read_bytes()[:2000])
    assert_refused(capsys, tmp_path, tmp_path / "half.pt", "--output", tmp_path / "x.pt", says=["half.pt", "damaged"])
    own = TransformerDecoderBase.output_layer
    calls = []

    def other(self, features):
        calls.append(1)
        return own(self, features) * (1.1 if len(calls) == 2 else 1.0)

    monkeypatch.setattr(TransformerDecoderBase, "output_layer", other)
    assert_refused(capsys, tmp_path, path, "--output", tmp_path / "x.pt", says=["logits differ by 0.09"])
