"""The scripts of examples/translation, run as a user runs them, in folders with spaces in their names."""

import gzip
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests import warm_start

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples" / "translation"
MULTI30K = REPO.parent / "shared" / "data" / "multi30k"
TEACHER = REPO.parent / "shared" / "teachers" / "multi30k.en-de"
WORDS = {
    "en": "a man woman dog red blue runs walks plays in on the street park ball with two children".split(),
    "de": "ein Mann Frau Hund rot blau rennt geht spielt in auf der Straße Park Ball mit zwei Kinder".split(),
}


def run(*command, **variables):
    env = dict(os.environ, OMP_NUM_THREADS="1")
    env["PATH"] = warm_start.path_of_commands() + os.pathsep + env["PATH"]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [warm_start.path_of_modules(), env.get("PYTHONPATH")]))
    env.update(variables)
    return subprocess.run(
        [str(word) for word in command],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )


def sentences(lang, count, seed):
    """Lines that correspond by position: the same seed draws the same numbers in both languages."""
    draw = random.Random(seed)
    words = WORDS[lang]
    return [" ".join(words[draw.randrange(16)] for _ in range(draw.randint(3, 9))) + " ." for _ in range(count)]


def lines(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def multi30k(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two words") / "gz files"
    folder.mkdir()
    for seed, (name, count) in enumerate([("train", 200), ("val", 13), ("test_2016_flickr", 11)]):
        for lang in ("en", "de"):
            text = sentences(lang, count, seed)
            if name == "test_2016_flickr":
                text[3] = text[3] + "\r and\u2028on\x85and on"  # one line, whatever Python and sacrebleu think
                text[5] = ""
            with gzip.open(folder / f"{name}.{lang}.gz", "wt", encoding="utf-8", newline="") as file:
                file.write("\n".join(text))  # no newline at the end of the file
    return folder


@pytest.fixture(scope="module")
def prepared(multi30k):
    out = multi30k.parent / "pre pared"
    script = EXAMPLES / "prepare-multi30k.sh"
    result = run("bash", script, "en", "de", multi30k, OUT=str(out), VOCAB="45", TESTS="test_2016_flickr")
    assert result.returncode == 0, result.stderr
    return out


def prepare_again(multi30k, out, folder=None, **variables):
    variables = dict({"OUT": str(out), "VOCAB": "45", "TESTS": "test_2016_flickr"}, **variables)
    return run("bash", EXAMPLES / "prepare-multi30k.sh", "en", "de", folder or multi30k, **variables)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_bash(script):
    assert run("bash", "-n", script).returncode == 0


def test_multi30k_keeps_every_sentence_in_its_place(prepared):
    from fairseq.data import Dictionary, data_utils

    for split, count in (("train", 200), ("valid", 13), ("test", 11)):
        for lang in ("en", "de"):
            assert len(lines(prepared / "raw" / f"{split}.{lang}")) == count
            data = data_utils.load_indexed_dataset(str(prepared / "data-bin" / f"{split}.en-de.{lang}"), None)
            assert len(data) == count
    reference = lines(prepared / "raw" / "test.de")
    assert reference[3].endswith(". and on and on") and reference[5] == ""
    dictionary = Dictionary.load(str(prepared / "data-bin" / "dict.de.txt"))
    decoded = dictionary.string(data[4], bpe_symbol="sentencepiece")
    assert decoded == reference[4]
    assert lines(prepared / "testsets.txt") == ["test test_2016_flickr"]
    assert [path.name for path in prepared.parent.iterdir() if ".tmp." in path.name] == []


def test_multi30k_runs_again_and_refuses_other_settings(multi30k, prepared):
    again = prepare_again(multi30k, prepared)
    assert again.returncode == 0 and "already exists" in again.stdout
    other = prepare_again(multi30k, prepared, VOCAB="46")
    assert other.returncode == 1 and "set OUT to another folder" in other.stderr


def test_multi30k_takes_an_existing_model_and_dictionary(multi30k, prepared, tmp_path):
    """The data of a student must be indexed as its teacher's."""
    own = {"SPM": str(prepared / "spm.model"), "DICT": str(prepared / "dict.txt")}
    result = prepare_again(multi30k, tmp_path / "out", **own)
    assert result.returncode == 0, result.stderr
    for name in ("dict.de.txt", "train.en-de.en.bin", "test.en-de.de.bin"):
        assert (tmp_path / "out" / "data-bin" / name).read_bytes() == (prepared / "data-bin" / name).read_bytes()
    (tmp_path / "foreign.txt").write_text("x 1\ny 1\n")
    result = prepare_again(multi30k, tmp_path / "other", SPM=own["SPM"], DICT=str(tmp_path / "foreign.txt"))
    assert result.returncode != 0 and "belong together" in result.stderr and not (tmp_path / "other").exists()


@pytest.mark.parametrize("fault", ["missing", "truncated", "unequal", "hash"])
def test_multi30k_refuses_a_bad_folder(multi30k, tmp_path, fault):
    folder = tmp_path / "gz files"
    shutil.copytree(str(multi30k), str(folder))
    victim = folder / "val.de.gz"
    if fault == "missing":
        victim.unlink()
    elif fault == "truncated":
        victim.write_bytes(victim.read_bytes()[:40])
    elif fault == "unequal":
        victim.write_bytes(gzip.compress("\n".join(sentences("de", 12, 1)).encode()))
    else:
        names = sorted(path.name for path in folder.iterdir())
        (folder / "SHA256SUMS").write_text("".join(f"{'0' * 64}  {name}\n" for name in names))
    result = prepare_again(multi30k, tmp_path / "out", folder=folder)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert ("sha256" if fault == "hash" else "val.de.gz") in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["gz files"]


@pytest.mark.slow
@pytest.mark.skipif(not MULTI30K.is_dir() or not TEACHER.is_dir(), reason="no ../shared with Multi30k and its teacher")
def test_multi30k_on_the_real_files(tmp_path):
    model = {"SPM": str(TEACHER / "spm.model"), "DICT": str(TEACHER / "dict.txt")}
    out = tmp_path / "multi30k"
    result = run("bash", EXAMPLES / "prepare-multi30k.sh", "en", "de", MULTI30K, OUT=str(out), **model)
    assert result.returncode == 0, result.stderr
    assert "no sentence lost in 8 files" in result.stdout
    assert result.stdout.count(" 0 of them not in the dictionary") == 8
    assert len(lines(out / "raw" / "train.de")) == 29000


def iwslt_tree(folder):
    """As in the original: tagged training text, tests as XML; returns the (de, en) training pairs with text."""
    folder.mkdir()
    text = {lang: sentences(lang, 120, 7) for lang in ("de", "en")}
    text["de"][10], text["en"][10] = "Ja &amp; nein .", "Yes &amp; no ."
    text["de"][11], text["en"][11] = "Kurz .", "This one is far too long for the other one ."
    text["de"][12], text["en"][12] = "", "Nothing there ."
    for lang in ("de", "en"):
        head = "<url>http://x</url>\n<keywords>talks, x</keywords>\n<talkid>1</talkid>\n"
        titles = f"<title>Titel {lang}</title>\n<description>TED Talk: {lang}</description>\n"
        body = "\n".join(text[lang]) + "\n"
        (folder / f"train.tags.de-en.{lang}").write_text(head + titles + body, encoding="utf-8")
        for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
            segments = "".join(f'<seg id="{i}"> {name} it’s {lang} {i} </seg>\n' for i in (1, 2))
            xml = f'<?xml version="1.0"?>\n<doc docid="1">\n<title>no segment</title>\n{segments}</doc>\n'
            (folder / f"IWSLT14.{name}.de-en.{lang}.xml").write_text(xml, encoding="utf-8")
    titles = [("Titel de", "Titel en"), ("TED Talk: de", "TED Talk: en")]
    pairs = titles + [pair for i, pair in enumerate(zip(text["de"], text["en"])) if i not in (11, 12)]
    return [tuple(side.replace("&amp;", "&").lower() for side in pair) for pair in pairs]


def test_iwslt14_from_a_folder_and_from_the_archive(tmp_path):
    pairs = iwslt_tree(tmp_path / "de-en")
    script = EXAMPLES / "prepare-iwslt14.sh"
    out = tmp_path / "pre pared"
    result = run("bash", script, "de", "en", tmp_path, OUT=str(out), VOCAB="45")
    assert result.returncode == 0, result.stderr

    def read(split):
        return list(zip(lines(out / "raw" / f"{split}.de"), lines(out / "raw" / f"{split}.en")))

    assert read("valid") == pairs[22::23]
    assert read("train") == [pair for number, pair in enumerate(pairs, 1) if number % 23]
    assert len(read("test")) == 10 and read("test")[0] == ("ted.dev2010 it's de 1", "ted.dev2010 it's en 1")

    archive = tmp_path / "de-en.tgz"
    with tarfile.open(str(archive), "w:gz") as file:
        file.add(str(tmp_path / "de-en"), "de-en")
    again = run("bash", script, "de", "en", archive, OUT=str(out), VOCAB="45")
    assert again.returncode == 0 and "already exists" in again.stdout
    archive.write_bytes(archive.read_bytes()[:300])
    broken = run("bash", script, "de", "en", archive, OUT=str(tmp_path / "out"))
    assert broken.returncode == 1 and "cannot be unpacked" in broken.stderr and not (tmp_path / "out").exists()


def save_epoch(folder, epoch, weights, updates=1):
    tied = weights["encoder"].float()
    model = {
        "encoder.embed_tokens.weight": tied,
        "decoder.embed_tokens.weight": tied,
        "decoder.half": weights["half"].half(),
        "decoder.steps": torch.tensor([epoch]),
    }
    state = {
        "cfg": {"model": {"_name": "transformer"}, "task": {"_name": "translation"}},
        "model": model,
        "last_optimizer_state": {"state": tied.clone()},
        "optimizer_history": [
            {"criterion_name": "X", "optimizer_name": "Y", "lr_scheduler_state": {}, "num_updates": updates}
        ],
        "extra_state": {"train_iterator": {"epoch": epoch}},
    }
    torch.save(state, str(folder / f"checkpoint{epoch}.pt"))


def test_average_checkpoints_is_the_mean_of_the_last_epochs(tmp_path, monkeypatch):
    folder = tmp_path / "save dir"
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    weights = [
        {name: torch.randn(5, 4, generator=generator, dtype=torch.float64) for name in ("encoder", "half")}
        for _ in range(3)
    ]
    for epoch, values in zip((8, 9, 10), weights):  # 10 comes after 9, though not by name
        save_epoch(folder, epoch, values)
    shutil.copy(str(folder / "checkpoint8.pt"), str(folder / "checkpoint_best.pt"))
    output = folder / "averaged.pt"
    script = EXAMPLES / "average_checkpoints.py"
    result = run("python", script, folder, "--last", "2", "--output", output)
    assert result.returncode == 0, result.stderr

    state = torch.load(str(output), weights_only=True)  # nothing in it but tensors and plain containers
    model = state["model"]
    expected = (weights[1]["encoder"].float().double() + weights[2]["encoder"].float().double()) / 2
    torch.testing.assert_close(model["encoder.embed_tokens.weight"].double(), expected, rtol=0, atol=1e-7)
    halves = (weights[1]["half"].half().double() + weights[2]["half"].half().double()) / 2
    assert model["decoder.half"].dtype == torch.float32
    torch.testing.assert_close(model["decoder.half"].double(), halves, rtol=0, atol=1e-7)
    assert model["decoder.steps"].item() == 10
    assert model["encoder.embed_tokens.weight"].data_ptr() == model["decoder.embed_tokens.weight"].data_ptr()
    assert state["last_optimizer_state"] is None and OmegaConf.create(state["cfg"]).model._name == "transformer"

    # by updates: fairseq names those of an epoch's end by the epoch alone, and other epochs end in between
    by_updates = tmp_path / "by updates"
    by_updates.mkdir()
    for epoch, (of_epoch, updates) in enumerate([(0, 90), (1, 100), (0, 130), (2, 200)], 1):
        save_epoch(by_updates, epoch, weights[of_epoch], updates)
    (by_updates / "checkpoint4.pt").rename(by_updates / "checkpoint_4_200.pt")
    of_updates = by_updates / "averaged.pt"
    result = run("python", script, by_updates, "--last", "2", "--every", "50", "--output", of_updates)
    assert result.returncode == 0 and "checkpoint2.pt to checkpoint_4_200.pt" in result.stdout, result.stderr
    assert "no checkpoint after 150 updates; averaging those after 100, 200" in result.stderr
    for name, value in torch.load(str(of_updates), weights_only=True)["model"].items():
        assert name == "decoder.steps" or torch.equal(value, model[name])

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import average_checkpoints

    arguments = [script, by_updates, "--last", "3", "--every", "50", "--output", folder / "more.pt"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in arguments])
    with pytest.raises(SystemExit, match="has 2 checkpoints after a multiple of 50 updates.*--keep-interval-updates"):
        average_checkpoints.main()
    assert not (folder / "more.pt").exists()


def test_scores_follow_the_sentence_ids(tmp_path):
    generated, reference = tmp_path / "generate-test.txt", tmp_path / "test.de"
    text = sentences("de", 12, 3)
    reference.write_text("\n".join(text) + "\n", encoding="utf-8")
    order = random.Random(1).sample(range(12), 12)
    rows = [f"S-{i}\tx\nT-{i}\tx\nH-{i}\t-0.1\tx\nD-{i}\t-0.1\t{text[i]}\nP-{i}\t-0.1" for i in order]
    generated.write_text("\n".join(rows) + "\n", encoding="utf-8")
    arguments = ["--reference", reference, "--hypotheses", tmp_path / "hypotheses", "--name", "a|b", "--test-set", "t"]
    command = [sys.executable, EXAMPLES / "score.py", generated, *arguments, "--results", tmp_path / "results.md"]
    for _ in range(2):
        assert run(*command).returncode == 0
    table = lines(tmp_path / "results.md")
    assert len(table) == 4 and table[2].startswith("| a\\|b | t | 100.0 | 100.0 | `nrefs:1") and table[2] == table[3]
    assert lines(tmp_path / "hypotheses") == text

    generated.write_text("\n".join(rows[1:]) + "\n", encoding="utf-8")
    result = run(*command)
    assert result.returncode != 0 and "11 hypotheses for 12 references" in result.stderr
    assert len(lines(tmp_path / "results.md")) == 4
