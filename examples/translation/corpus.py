"""The text work behind prepare-*.sh: reading, checking, sentencepiece. One sub-command per step; `corpus.py --help`.

Here, a line ends at a newline byte and nowhere else. Python, fairseq and sacrebleu also break lines at carriage returns
and Unicode separators, so those become spaces on reading: otherwise source, target and references would be misaligned.
"""

import argparse
import gzip
import hashlib
import html
import itertools
import os
import re
import struct
import sys

IWSLT_TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")


def clean(line):
    return " ".join(line.split())


def iterate_lines(path):
    """Like read_lines, one line at a time: training data need not fit into memory."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file):
                yield clean(line.decode("utf-8" if number else "utf-8-sig"))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} cannot be read ({error}); does it exist, complete and in UTF-8?") from error


def read_lines(path):
    return list(iterate_lines(path))


def create(path):
    """A new file for text; an existing file is an input or somebody's work, and is kept."""
    try:
        return open(path, "x", encoding="utf-8", newline="\n")
    except OSError as error:
        raise SystemExit(f"{path} cannot be created ({error.strerror}); remove it, or give another name") from error


def write_lines(path, lines):
    with create(path) as file:
        file.writelines(line + "\n" for line in lines)


def write_pairs(pairs, source_out, target_out):
    count = 0
    with create(source_out) as sources:
        with create(target_out) as targets:
            for source, target in pairs:
                sources.write(source + "\n")
                targets.write(target + "\n")
                count += 1
    if not count:
        raise SystemExit(f"{source_out}: no sentence pair to write; is the input empty?")
    print(f"{os.path.basename(source_out)}: {count} pairs")


def iterate_pairs(source, target, keep=lambda line: line):
    """keep: what a line becomes; None drops it"""
    counts = [0, 0]
    sides = [(line for line in map(keep, iterate_lines(path)) if line is not None) for path in (source, target)]
    for pair in itertools.zip_longest(*sides):
        counts = [count + (line is not None) for count, line in zip(counts, pair)]
        if None not in pair:
            yield pair
    if counts[0] != counts[1]:
        raise SystemExit(f"{source} has {counts[0]} sentences, {target} has {counts[1]}: not a parallel corpus")


def verify(folder, names):
    """Checks the named files against SHA256SUMS in their folder, if there is one."""
    sums = os.path.join(folder, "SHA256SUMS")
    if not os.path.exists(sums):
        print(f"no SHA256SUMS in {folder}: files are not checked")
        return
    expected = {line.split()[1].lstrip("*"): line.split()[0] for line in read_lines(sums) if line}
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
        if name not in expected:
            raise SystemExit(f"{sums}: has no entry for {name}; add it, or remove SHA256SUMS")
        if found != expected[name]:
            raise SystemExit(f"{name}: sha256 is {found}, SHA256SUMS says {expected[name]}; fetch it again")
    print(f"sha256 of {len(names)} files as in SHA256SUMS")


def fingerprint(paths):
    """A digest of the contents of files, which shows whether a prepared folder came from the same input."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    print(digest.hexdigest())


def iwslt_train_line(line):
    """Text of a line of train.tags.*, None for a line about the talk; titles and descriptions count as sentences."""
    if re.match(r"</?(url|talkid|keywords|speaker|translator|reviewer|doc)\b", line):
        return None
    return clean(html.unescape(re.sub(r"</?(title|description)>", "", line)))


def iwslt_test_line(line):
    match = re.match(r"<seg id=[^>]*>(.*)</seg>$", line)
    return clean(html.unescape(match.group(1))).replace("\u2019", "'") if match else None


def iwslt_keep(source, target):
    """The filter of the usual recipe (1 to 175 tokens, ratio at most 1.5); tokens are words and punctuation marks."""
    lengths = [len(re.findall(r"\w+|[^\w\s]", line)) for line in (source, target)]
    return 1 <= min(lengths) and max(lengths) <= 175 and max(lengths) <= 1.5 * min(lengths)


def iwslt14(folder, source, target, out, lowercase):
    """folder/train.tags.de-en.* and IWSLT14.TED*.xml → train, valid (every 23rd training pair) and test in `out`."""

    def path(name, lang, suffix):
        return os.path.join(folder, f"{name}.de-en.{lang}{suffix}")

    def write(name, pairs):
        if lowercase:
            pairs = [(one.lower(), other.lower()) for one, other in pairs]
        write_pairs(pairs, *(os.path.join(out, f"{name}.{lang}") for lang in (source, target)))

    train = list(iterate_pairs(path("train.tags", source, ""), path("train.tags", target, ""), iwslt_train_line))
    kept = [pair for pair in train if iwslt_keep(*pair)]
    print(f"train: {len(kept)} of {len(train)} pairs pass the length filter")
    write("train", [pair for number, pair in enumerate(kept, 1) if number % 23])
    write("valid", [pair for number, pair in enumerate(kept, 1) if not number % 23])
    test = []
    for name in IWSLT_TESTS:
        name = "IWSLT14." + name
        test += iterate_pairs(path(name, source, ".xml"), path(name, target, ".xml"), iwslt_test_line)
    write("test", test)


def train_spm(model, vocab_size, inputs):
    import sentencepiece

    for path in (model, re.sub(r"(\.model)?$", ".vocab", model, count=1)):
        create(path).close()
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=inputs,
            model_prefix=re.sub(r"\.model$", "", model),
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=1.0,
            num_threads=1,  # the sums of EM depend on how many threads add them up
            minloglevel=1,
        )
    except (RuntimeError, OSError) as error:
        raise SystemExit(f"sentencepiece: {error}\n(set VOCAB to another size?)") from error


def write_dict(model, path):
    """Every piece of the model, in its order, as a fairseq dictionary; fairseq adds its own special symbols."""
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_file=model)
    pieces = [spm.id_to_piece(i) for i in range(len(spm)) if not (spm.is_control(i) or spm.is_unknown(i))]
    write_lines(path, [piece + " 1" for piece in pieces])


def encode(model, dictionary, folder, out):
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_file=model)
    symbols = {line.rsplit(" ", 1)[0] for line in read_lines(dictionary)}
    for name in sorted(os.listdir(folder)):
        tokens = unknown = 0
        with create(os.path.join(out, name)) as file:
            for line in iterate_lines(os.path.join(folder, name)):
                pieces = spm.encode(line, out_type=str)
                tokens += len(pieces)
                unknown += sum(piece not in symbols for piece in pieces)
                file.write(" ".join(pieces) + "\n")
        print(f"{name}: {tokens} tokens, {unknown} of them not in the dictionary")
        # A test set may well contain a new character; a training set that does not fit the dictionary is a mistake.
        if name.startswith("train") and unknown > tokens * 0.01:
            raise SystemExit(f"{name}: over 1% unknown: do the sentencepiece model and the dictionary belong together?")


def count_binarised(index):
    """Sentences in fairseq's default (mmap) format, whose index starts: magic, version, type code, count."""
    with open(index, "rb") as file:
        magic, _, _, count = struct.unpack("<9sQBQ", file.read(26))
    if magic != b"MMIDIDX\x00\x00":
        raise SystemExit(f"{index}: not the index of a binarised fairseq text")
    return count


def check(data_bin, raw, pair):
    """Every raw file must have been binarised with all its sentences."""
    names = sorted(os.listdir(raw))
    for name in names:
        split, lang = name.rsplit(".", 1)
        expected = sum(1 for _ in iterate_lines(os.path.join(raw, name)))
        found = count_binarised(os.path.join(data_bin, f"{split}.{pair}.{lang}.idx"))
        if found != expected:
            raise SystemExit(f"{name}: {found} sentences binarised, {expected} in the raw text")
    print(f"no sentence lost in {len(names)} files")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="STEP")
    commands.required = True

    def command(name, function, *arguments):
        sub = commands.add_parser(name, help=(function.__doc__ or "").split("\n")[0])
        for argument, options in arguments:
            sub.add_argument(argument, **options)
        sub.set_defaults(function=function)

    def pairs(source, target, source_out, target_out):
        write_pairs(iterate_pairs(source, target), source_out, target_out)

    many, whole = {"nargs": "+"}, {"type": int}
    command("verify", verify, ("folder", {}), ("names", many))
    command("fingerprint", fingerprint, ("paths", many))
    command("pairs", pairs, ("source", {}), ("target", {}), ("source_out", {}), ("target_out", {}))
    lowercase = ("--lowercase", {"action": "store_true"})
    command("iwslt14", iwslt14, ("folder", {}), ("source", {}), ("target", {}), ("out", {}), lowercase)
    command("train-spm", train_spm, ("model", {}), ("vocab_size", whole), ("inputs", many))
    command("write-dict", write_dict, ("model", {}), ("path", {}))
    command("encode", encode, ("model", {}), ("dictionary", {}), ("folder", {}), ("out", {}))
    command("check", check, ("data_bin", {}), ("raw", {}), ("pair", {}))

    arguments = vars(parser.parse_args())
    del arguments["command"]
    arguments.pop("function")(**arguments)


if __name__ == "__main__":
    sys.exit(main())
