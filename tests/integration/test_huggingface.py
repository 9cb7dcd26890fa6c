"""From a folder of Hugging Face's to a trained student, by the commands that a user runs."""

import pytest

from tests.support import PLUGIN, load, logged, run, train, write_corpus
from tests.unit.huggingface_folders import make_folder

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("google.protobuf", reason="protobuf is not installed")

K = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An NLLB folder, and the corpus binarised in its pieces: those that the corpus needs."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("hugging face")
    write_corpus(folder)
    teacher = make_folder("nllb", folder / "nllb")
    texts = [folder / "train.en", folder / "train.de"]
    run(
        "kd-plugin",
        "vocabulary",
        teacher,
        "--output",
        folder / "vocabulary",
        "-s",
        "en",
        "-t",
        "de",
        "--subset",
        *texts,
    )
    for split in ("train", "valid"):
        for language in ("en", "de"):
            model = folder / "vocabulary" / f"sentencepiece.{language}.model"
            processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
            lines = (folder / f"{split}.{language}").read_text(encoding="utf-8").splitlines()
            pieces = "".join(" ".join(processor.encode(line, out_type=str)) + "\n" for line in lines)
            (folder / f"{split}.spm.{language}").write_text(pieces, encoding="utf-8")
    run(
        "fairseq-preprocess", "-s", "en", "-t", "de", "--trainpref", folder / "train.spm", "--validpref",
        folder / "valid.spm", "--srcdict", folder / "vocabulary" / "dict.en.txt", "--tgtdict",
        folder / "vocabulary" / "dict.de.txt", "--destdir", folder / "data-bin",
    )  # fmt: skip
    return folder, teacher


TEACHER = ["--teacher-source-lang", "eng_Latn", "--teacher-target-lang", "deu_Latn"]
SHORT = ["--max-tokens", 600, "--max-update", 4, "--kd-alpha", "0.3", "--no-epoch-checkpoints"]


def test_online_and_cached_answers_train_the_same_student(made, tmp_path):
    folder, teacher = made
    data = folder / "data-bin"
    vocab = len((folder / "vocabulary" / "dict.de.txt").read_text(encoding="utf-8").splitlines()) + 4
    online = train(data, tmp_path / "online", *PLUGIN, "--teacher-path", teacher, *TEACHER, *SHORT)
    (signature,) = {line for line in online.stdout.splitlines() if "kd|alpha" in line}
    assert "|teacher:sha256:" in signature and "|vocab:remapped|" in signature
    values = logged(online.stdout, "train_inner")
    assert all(0 < value["teacher_dropped"] < 1 for value in values) and "teacher_dropped" in online.stdout
    cache = ["kd-plugin", "cache", data, "--teacher-path", teacher, *TEACHER, "--cache-dir", tmp_path / "cache"]
    run(*cache, "--subset", "train,valid", "--k", vocab)
    cached = train(data, tmp_path / "cached", *PLUGIN, "--teacher-cache", tmp_path / "cache", *SHORT)
    for ours, theirs in zip(values, logged(cached.stdout, "train_inner")):
        assert ours["kd_loss"] == pytest.approx(theirs["kd_loss"], abs=0.02)  # stored in half precision
        assert ours["agreement"] == pytest.approx(theirs["agreement"], abs=1.0)
    # the student is an ordinary checkpoint, which no flag of a teacher's has reached
    task = load(tmp_path / "online" / "checkpoint_last.pt")["cfg"]["task"]
    assert task["_name"] == "translation" and not any("teacher" in name for name in task)


def test_its_layers_and_attention_teach_too(made, tmp_path):
    """A student of other sizes, packed: all values fall together, and the checkpoint is an ordinary one."""
    folder, teacher = made
    flags = ["--kd-hidden", "mse", "--kd-attention", "both", "--kd-packed-student", *SHORT, "--max-update", 12]
    output = train(folder / "data-bin", tmp_path, *PLUGIN, "--teacher-path", teacher, *TEACHER, *flags).stdout
    assert "|hidden:mse:last:1|attention:both:last:1|" in output
    steps = logged(output, "train_inner")
    for name in ("hidden_loss", "attention_loss"):
        assert 0 < steps[-1][name] < steps[0][name]
    assert not any("hidden" in name for name in load(tmp_path / "checkpoint_last.pt")["model"])


def test_what_does_not_fit_is_refused_before_the_first_update(made, tmp_path):
    folder, teacher = made
    for flags, said in [
        ([], "--teacher-source-lang with one of its codes"),
        (["--teacher-source-lang", "en", "--teacher-target-lang", "de"], "does not know this language"),
        ([*TEACHER, "--teacher-sha256", "0" * 64], "sha256 of its files is"),
        ([*TEACHER, "--teacher-overrides", '{"dropout": 0}'], "no teacher is a fairseq checkpoint"),
    ]:
        result = train(folder / "data-bin", tmp_path, *PLUGIN, "--teacher-path", teacher, *flags, *SHORT, check=False)
        assert result.returncode != 0 and said in result.stdout and "Remedy: " in result.stdout
        assert not list(tmp_path.iterdir())
