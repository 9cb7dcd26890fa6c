"""Binarised text: every format that fairseq-preprocess writes gives the same sentences, damaged files are named."""

import json

import pytest
import torch
from fairseq.data import Dictionary, indexed_dataset

from kd_plugin.cli import main
from kd_plugin.corpus.binarised import dataset_format, open_indexed
from kd_plugin.corpus.translations import Translations
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation_translation import DistillationTranslationConfig, DistillationTranslationTask
from kd_plugin.teachers.cached import CachedTeacher
from tests.support import MODEL, asked, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_teachers import LANGS

FORMATS = ["mmap", "lazy", "cached", "raw"]
LINES = {
    "en": ["word1 word2 word3", "", "word9 elephant", "word1 word2 word3", "word4"],
    "de": ["word5", "word6 word7", "word1 word1 word1 word1", "word8", "word2 word3"],
}


def binarise(folder, implementation, lines=LINES, split="train", pair="en-de"):
    """As fairseq-preprocess --dataset-impl."""
    write_dictionaries(folder, WORDS)
    for language, text in lines.items():
        dictionary = Dictionary.load(str(folder / f"dict.{language}.txt"))
        prefix = folder / f"{split}.{pair}.{language}"
        if implementation == "raw":
            prefix.write_text("".join(line + "\n" for line in text), encoding="utf-8")
            continue
        builder = indexed_dataset.make_builder(f"{prefix}.bin", implementation, len(dictionary))
        for line in text:
            builder.add_item(dictionary.encode_line(line, add_if_not_exist=False, append_eos=True))
        builder.finalize(f"{prefix}.idx")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same text in a folder of each format, and a teacher."""
    folder = tmp_path_factory.mktemp("data")
    for implementation in FORMATS:
        binarise(folder / implementation, implementation)
    make_checkpoint(folder / "teacher.pt", folder / "mmap", *MODEL, *LANGS)
    return folder


@pytest.mark.parametrize("implementation", FORMATS)
def test_sentences_are_the_same_in_every_format(implementation, data):
    dictionary = Dictionary.load(str(data / "mmap" / "dict.en.txt"))
    dataset = open_indexed(str(data / implementation / "train.en-de.en"), dictionary)
    assert [dictionary.string(dataset[at]) for at in (4, 0, 1, 2)] == [
        "word4", "word1 word2 word3", "", "word9 <unk>",
    ]  # fmt: skip
    assert len(dataset) == 5


@pytest.mark.parametrize("implementation", ["lazy", "raw"])
def test_decode_and_cache_read_every_format(implementation, data, tmp_path):
    """Old formats ended in tracebacks; what comes out is what the default format gives."""
    common = ["-s", "en", "-t", "de"]
    answers, stored = {}, {}
    for name in ("mmap", implementation):
        overrides = json.dumps({"data": str(data / name)})
        decoded, cached = tmp_path / f"decoded {name}", tmp_path / f"cached {name}"
        if not decoded.exists():
            flags = ["--path", data / "teacher.pt", "--dict-dir", data / name, "--remove-bpe", "none"]
            assert main([*map(str, ["decode", data / name, *flags, "--output", decoded]), "--max-len-b", "5"]) == 0
            flags = ["--teacher-path", data / "teacher.pt", "--teacher-overrides", overrides, "--k", 4]
            assert main(list(map(str, ["cache", data / name, *common, *flags, "--cache-dir", cached]))) == 0
        answers[name] = [(line, record.source, record.hypotheses) for line, record in Translations(decoded).lines()]
        (folder,) = cached.iterdir()
        stored[name] = [path.read_bytes() for path in sorted(folder.glob("shard-*.bin"))]
    assert answers["mmap"] == answers[implementation] and len(answers["mmap"]) == 5
    assert stored["mmap"] == stored[implementation] and len(stored["mmap"]) == 1


@pytest.mark.parametrize("implementation", FORMATS)
def test_training_gets_the_answers_to_its_own_tokens_in_every_format(implementation, data, tmp_path):
    flags = ["--teacher-path", data / "teacher.pt", "--k", 4, "--cache-dir", tmp_path / "cache"]
    overrides = json.dumps({"data": str(data / "mmap")})
    folder = data / implementation
    assert (
        main(list(map(str, ["cache", folder, "-s", "en", "-t", "de", *flags, "--teacher-overrides", overrides]))) == 0
    )
    cfg = DistillationTranslationConfig(
        data=str(folder),
        source_lang="en",
        target_lang="de",
        dataset_impl=implementation,
        train_subset="train",
        required_seq_len_multiple=1,
    )
    task = DistillationTranslationTask.setup_task(cfg)
    task.teacher = CachedTeacher(str(tmp_path / "cache"), task.target_dictionary)
    task.load_dataset("train")
    dataset = task.dataset("train")
    if dataset.supports_prefetch:  # as fairseq's iterators do before they read a batch
        dataset.prefetch([0, 2, 4])
    sample = dataset.collater([dataset[index] for index in (4, 0, 2)])
    rows = sample["target"].ne(1).reshape(-1).nonzero(as_tuple=True)[0]
    answer = asked(task.teacher, sample, rows, torch.float32)
    # the teacher itself, about the same batch
    from kd_plugin.teachers.opening import open_teacher

    online = open_teacher(task, str(data / "teacher.pt"), None, overrides, None, "fp32")
    expected = asked(online, sample, rows, torch.float32).logits.log_softmax(dim=-1).topk(4)
    assert torch.equal(answer.ids, expected.indices)
    torch.testing.assert_close(answer.lprobs, expected.values, atol=2e-3, rtol=0)


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "longer":
        path.write_bytes(content + b"\x00")
    else:
        path.write_bytes(b"another file" * 9)


@pytest.mark.parametrize("implementation", ["mmap", "lazy"])
@pytest.mark.parametrize("end", ["idx", "bin"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "longer", "foreign"])
def test_damaged_files_are_named(implementation, end, how, tmp_path):
    folder = binarise(tmp_path, implementation)
    damage(folder / f"train.en-de.en.{end}", how)
    with pytest.raises(KDPluginError, match=rf"train\.en-de\.en.*\.{end}.*Remedy: .*--dataset-impl mmap"):
        open_indexed(str(folder / "train.en-de.en"), Dictionary.load(str(folder / "dict.en.txt")))


def test_formats_that_are_not_read_are_refused_by_name(tmp_path):
    folder = binarise(tmp_path, "mmap")
    dictionary = Dictionary.load(str(folder / "dict.en.txt"))
    index = folder / "train.en-de.en.idx"
    index.write_bytes(b"HUFFIDX\x00\x00" + bytes(50))
    with pytest.raises(KDPluginError, match="format huffman is not supported.*--dataset-impl mmap"):
        dataset_format(str(folder / "train.en-de.en"))
    (folder / "train.en-de.en").write_bytes(b"w\xf6rter\n")
    with pytest.raises(KDPluginError, match="train.en-de.en: its binarised text is damaged .*utf-8"):
        open_indexed(str(folder / "train.en-de.en"), dictionary)
    (folder / "empty.idx").write_bytes(b"MMIDIDX\x00\x00" + bytes([1, 0, 0, 0, 0, 0, 0, 0, 8]) + bytes(8))
    (folder / "empty.bin").write_bytes(b"")
    with pytest.raises(KDPluginError, match="empty: has no sentence"):
        dataset_format(str(folder / "empty"))


@pytest.mark.parametrize("verb", ["decode", "cache"])
def test_verbs_refuse_damaged_and_foreign_data_without_a_traceback(verb, data, tmp_path, capsys):
    flags = ["-s", "en", "-t", "de"]
    out = tmp_path / "out"
    teacher = {
        "decode": ["--path", data / "teacher.pt", "--dict-dir", data / "mmap", "--remove-bpe", "none", "--output", out],
        "cache": ["--teacher-path", data / "teacher.pt", "--k", 4, "--cache-dir", out, "--teacher-overrides"],
    }[verb]
    teacher += [json.dumps({"data": str(data / "mmap")})] if verb == "cache" else []

    def refused(folder):
        assert main([verb, *map(str, [folder, *flags, *teacher])]) == 1
        message = capsys.readouterr().err
        assert "Remedy: " in message
        return message

    folder = binarise(tmp_path / "truncated", "cached")
    damage(folder / "train.en-de.en.bin", "truncated")
    assert "train.en-de.en.bin has" in refused(folder)
    # with more symbols than the dictionary beside it, which would be read as unknown ones
    folder = binarise(tmp_path / "larger", "mmap")
    builder = indexed_dataset.make_builder(str(folder / "train.en-de.en.bin"), "mmap", 40)
    for _ in LINES["en"]:
        builder.add_item(torch.tensor([5, 37, 2]))
    builder.finalize(str(folder / "train.en-de.en.idx"))
    message = refused(folder)
    assert "train.en-de.en: contains symbol number 37, but its dictionary has 32 symbols" in message
    assert not list(out.glob("*.jsonl")) and not list(out.glob("*/manifest.json"))


def test_several_folders_are_decoded_one_after_the_other(data, tmp_path, capsys):
    """As kd-plugin cache and fairseq-train read A:B: all of a training split, of others the first."""
    more = {"en": ["word8 word7", "word4"], "de": ["word1", "word2"]}
    first, second = data / "mmap", binarise(tmp_path / "second", "raw", more)
    for folder in (first, second):
        binarise(folder, "mmap", more, split="valid")
    flags = ["--path", data / "teacher.pt", "--dict-dir", first, "--remove-bpe", "none", "--max-len-b", "5"]

    def decode(folders, name, *extra):
        assert main(list(map(str, ["decode", folders, *flags, *extra, "--output", tmp_path / name]))) == 0
        return {
            line: (record.source, record.hypotheses[0].text) for line, record in Translations(tmp_path / name).lines()
        }

    joined = decode(f"{first}:{second}", "joined")
    alone = [*decode(first, "alone").values(), *decode(second, "other").values()]
    assert list(joined) == list(range(7)) and list(joined.values()) == alone
    assert [joined[line][0] for line in (5, 6)] == more["en"]
    # equal lines of different folders are one source
    assert Translations(tmp_path / "joined").manifest.records == 5
    assert len(decode(f"{first}:{second}", "valid", "--gen-subset", "valid")) == 2
    capsys.readouterr()
    assert main(list(map(str, ["decode", f"{first}:{tmp_path}/no", *flags, "--output", tmp_path / "x"]))) == 1
    assert f"{tmp_path}/no: no binarised split 'train'" in capsys.readouterr().err
