"""Tiny sentencepiece models of two invented languages, and fairseq checkpoints of what they write."""

import random
from pathlib import Path
from typing import List, Optional

import pytest

from tests.support import MODEL, make_checkpoint

SYLLABLES = {
    "en": "the an ing ed er ly ess tion for ment in con ble ous ity ful wh th sh ch ow ou ea".split(),
    "de": "ein der ung en er lich keit tion für heit ich ge bar aus sch ei zu ver über äu ö ß ig".split(),
}


def sentences(language: str, seed: int = 0, lines: int = 400) -> List[str]:
    """Sentences of words that come again; another seed has other words."""
    draw = random.Random(f"{language}{seed}")
    words = ["".join(draw.choices(SYLLABLES[language], k=draw.randint(1, 3))) for _ in range(150)]
    return [" ".join(draw.choices(words, k=draw.randint(3, 9))) + "." for _ in range(lines)]


def train(path: Path, lines: List[str], size: int = 110, kind: str = "unigram", **options) -> Path:
    import sentencepiece

    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=size, model_type=kind, num_threads=1,
            minloglevel=2, hard_vocab_limit=False, **options,
        )  # fmt: skip
    return path


def encoded(model: Path, lines: List[str]) -> List[List[str]]:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(lines, out_type=str)


def symbols(model: Path, lines: List[str]) -> List[str]:
    """What fairseq-preprocess makes a dictionary of."""
    return sorted({piece for pieces in encoded(model, lines) for piece in pieces})


class Pair:
    """A checkpoint that translates en-de, in a folder with its dictionaries, and its sentencepiece models."""

    def __init__(self, folder: Path, joint: bool):
        pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
        folder.mkdir()
        lines = {language: sentences(language) for language in SYLLABLES}
        both = train(folder / "both.spm", sum(lines.values(), []), 200) if joint else None
        self.models = {lang: both or train(folder / f"{lang}.spm", lines[lang]) for lang in lines}
        for language, model in self.models.items():
            text = "".join(f"{symbol} 1\n" for symbol in symbols(model, lines[language]))
            (folder / f"dict.{language}.txt").write_text(text, encoding="utf-8")
        self.folder, self.path = folder, folder / "model.pt"
        self.source = folder / "one.en"
        self.source.write_text(lines["en"][0] + "\n", encoding="utf-8")
        make_checkpoint(self.path, folder, "-s", "en", "-t", "de", *MODEL)

    def flags(self, source: Optional[Path] = None, target: Optional[Path] = None) -> List[str]:
        """Of both models, these or its own."""
        source, target = source or self.models["en"], target or self.models["de"]
        if source == target:
            return ["--sentencepiece-model", str(source)]
        return ["--source-sentencepiece-model", str(source), "--target-sentencepiece-model", str(target)]
