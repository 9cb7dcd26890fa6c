"""What is decoded: every line of a file, once, whatever is in it."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from kd_plugin.corpus.batches import by_length
from kd_plugin.corpus.sources import TextSource, group_equal, shares
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.errors import KDPluginError

PLAIN = Subwords(None, "none")


def source(path, content):
    path.write_bytes(content)
    return TextSource(str(path), PLAIN)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["a", "b b", "", "c"]), max_size=30), st.integers(1, 7))
def test_groups_hold_every_line_once_and_shards_every_group(tmp_path_factory, lines, size):
    text = source(tmp_path_factory.mktemp("text") / "input", "".join(line + "\n" for line in lines).encode())
    groups = group_equal(text.hashes)
    ids = [groups.ids(group) for group in range(len(groups))]
    assert sorted(sum(ids, [])) == list(range(len(lines)))
    assert [one[0] for one in ids] == sorted(one[0] for one in ids)
    assert all({lines[i] for i in one} == {lines[one[0]]} and one == sorted(one) for one in ids)
    assert len(ids) == len(set(lines))
    bounds = [(plan.first, plan.last) for plan in shares(groups, size)]
    assert [group for first, last in bounds for group in range(first, last)] == list(range(len(groups)))
    assert all(0 < last - first <= size for first, last in bounds)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100))
def test_batches_hold_every_sentence_once_and_no_more_than_their_room(lengths, room):
    batches = list(by_length(np.array(lengths, dtype=np.int64), room))
    assert sorted(int(at) for batch in batches for at in batch) == list(range(len(lengths)))
    sizes = [[lengths[at] for at in batch] for batch in batches]
    assert all(len(batch) == 1 or max(batch) * len(batch) <= room for batch in sizes)
    assert sum(sizes, []) == sorted(lengths)
    # none could have been fuller
    assert all(following[0] * (len(batch) + 1) > room for batch, following in zip(sizes, sizes[1:]))


def test_lines_end_in_lf_or_crlf_and_in_nothing_else(tmp_path):
    words = ["a\u2028b", "c\x85d", "e\x0bf\x0cg", "h\rk", "", " ", "\ufefflast without an end"]
    content = "\r\n".join(words[:2]) + "\r\n" + "\n".join(words[2:])
    text = source(tmp_path / "input", content.encode())
    assert len(text) == len(words)
    assert [sentence.text for sentence in text.read(range(len(words)))] == [word.replace("\r", " ") for word in words]
    assert [sentence.text for sentence in text.read([4, 0])] == ["", words[0]]


def test_same_line_with_either_end_is_the_same_source(tmp_path):
    text = source(tmp_path / "input", b"one\r\none\none")
    assert len(group_equal(text.hashes)) == 1


def test_empty_file(tmp_path):
    text = source(tmp_path / "input", b"")
    assert len(text) == 0 and len(group_equal(text.hashes)) == 0


def test_invalid_utf8_names_the_line(tmp_path):
    with pytest.raises(KDPluginError, match=r"input, line 2: not UTF-8 .*Remedy"):
        source(tmp_path / "input", b"fine\n\xff\xfe\nfine\n")


@pytest.mark.parametrize("name, cause", [("input.gz", "is packed.*gunzip"), ("nothing", "No such file.*Remedy")])
def test_file_that_cannot_be_read_line_by_line(tmp_path, name, cause):
    (tmp_path / "input.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(KDPluginError, match=rf"--input .*{name}: {cause}"):
        TextSource(str(tmp_path / name), PLAIN)


def test_byte_order_mark_is_no_text(tmp_path):
    text = source(tmp_path / "input", "\ufeffone\none\n\ufefftwo\n".encode())
    assert [sentence.text for sentence in text.read([0, 2])] == ["one", "\ufefftwo"]
    assert len(group_equal(text.hashes)) == 2


def test_identity_tells_contents_and_subwords_apart(tmp_path):
    one, other = source(tmp_path / "1", b"a\nb\n"), source(tmp_path / "2", b"a\nb\n")
    assert one.identity() == other.identity()
    assert one.identity() != source(tmp_path / "3", b"a\nB\n").identity()
    assert TextSource(str(tmp_path / "1"), Subwords(None, "sentencepiece")).identity() != one.identity()


def test_subwords_that_are_no_model(tmp_path):
    (tmp_path / "spm.model").write_bytes(b"nothing")
    with pytest.raises(KDPluginError, match="not a sentencepiece model"):
        Subwords(str(tmp_path / "spm.model"))
    with pytest.raises(KDPluginError, match="no such file"):
        Subwords(str(tmp_path / "none.model"))


def test_segmented_text_is_put_together():
    assert Subwords(None, "sentencepiece").decode(["▁Ein", "▁H", "und", "."]) == "Ein Hund."
    assert Subwords(None, "subword_nmt").decode(["Ein", "H@@", "und"]) == "Ein Hund"
    assert Subwords(None, "none").decode(["a", "b"]) == "a b"
