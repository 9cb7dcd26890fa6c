"""Checks that an exported model translates like its checkpoint."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from sacrebleu.metrics import BLEU

from kd_plugin.checkpoints.open import Checkpoint
from kd_plugin.corpus.languages import bleu_tokenizer, family
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subword_checks import Marks, check_known, check_text
from kd_plugin.corpus.subwords import Segmentation, Subwords
from kd_plugin.decoding.base import Settings, Tokens
from kd_plugin.decoding.fairseq import Checkpoints
from kd_plugin.decoding.models import Translated, open_model, share_identical, translate
from kd_plugin.errors import KDPluginError
from kd_plugin.export.options import QUANTIZED_THRESHOLD, THRESHOLD, Export

CHECKPOINT = "model.pt"  # in a folder exported for fairseq
SEARCH = Settings()


class Check(NamedTuple):
    """identical: fraction of the sentences, 0 to 1. bleu: of the exported model's translations against the original's.
    signature: sacreBLEU's. capped: number of translations that one of the models does not end within the length limit.
    """

    sentences: int
    identical: float
    bleu: float
    signature: str = ""
    capped: int = 0

    def __str__(self) -> str:
        identical = f"{self.identical:.1%} of {self.sentences:,} translations identical"
        capped = f"; {self.capped:,} cut off at the length limit" if self.capped else ""
        return f"{identical}, BLEU {self.bleu:.1f} ({self.signature}){capped}"


def check_sentences(opened: Checkpoint, file: str, subwords: Segmentation) -> List[Tokens]:
    """The symbols of --check, after checking that they belong to the checkpoint."""
    lines = [line for _, line in numbered_lines(Path(file), "--check")]
    if not any(map(str.strip, lines)):
        raise KDPluginError(f"--check {file}: contains no sentence. Remedy: raw text, one sentence per line")
    (symbols, others), has_model = (one.symbols for one in opened.dictionaries), subwords.source.path is not None
    check_text(Marks(lines), has_model, symbols, f"--check {file}")
    subwords.check_sides(lines, f"--check {file}", symbols == others)
    sentences = [subwords.source.encode(line) for line in lines]
    check_known(sentences, opened.dictionaries[0].indices, has_model)
    return sentences


def compare(
    opened: Checkpoint,
    folder: Path,
    args: Export,
    overrides: Dict[str, Any],
    sentences: List[Tokens],
    subwords: Subwords,
) -> Dict[str, Check]:
    """Translates --check with both models, and also with the vocabulary map if there is one.

    Args:
        subwords: of the target language

    Raises:
        KDPluginError: the translations differ by more than --check-threshold allows
    """
    exported = folder if args.format == "ctranslate2" else folder / CHECKPOINT
    languages: Dict[str, Any] = {"source_lang": args.source_lang, "target_lang": args.target_lang}
    target = None if opened.languages is None else opened.languages[1]
    original = open_model(opened.path, SEARCH, checkpoints=Checkpoints(opened, [opened.path], overrides))
    decoder = open_model(str(exported), SEARCH, **languages).decoder
    theirs = translate(original.decoder, sentences, name="checkpoint")
    ours = translate(decoder, sentences, name="exported")
    check = _compared(ours, theirs, subwords, target)
    checks = {"check": check}
    print(f"check: {check} against fairseq's")
    quantized = (args.quantization or "int8").startswith("int") and args.format == "ctranslate2"
    threshold = args.check_threshold
    if threshold is None:
        threshold = QUANTIZED_THRESHOLD if quantized else THRESHOLD
    judged = _compared(ours, theirs, subwords, target, [at for at in range(len(sentences)) if at not in theirs.capped])
    if check.bleu < threshold and judged.bleu < threshold:
        raise KDPluginError(
            f"--check {args.check}: the exported model's translations have BLEU {check.bleu:.1f} against the "
            f"checkpoint's, below --check-threshold {threshold:g}; nothing was written. "
            f"{_cause(ours, theirs, len(sentences), quantized)} Or lower the threshold, after comparing both with "
            "kd-plugin evaluate"
        )
    if check.bleu < threshold:
        print(
            f"below {threshold:g} only because of translations that the checkpoint does not end: without them {judged}"
        )
    if args.vocabulary_map_from:
        # reported, not refused: how much a map may change is up to the user of use_vmap
        decoder.use_vocabulary_map = True
        checks["check_with_vocabulary_map"] = mapped = _compared(
            translate(decoder, sentences, name="with the map"), theirs, subwords, target
        )
        print(f"with the vocabulary map: {mapped}")
    return checks


def _cause(ours: Translated, theirs: Translated, sentences: int, quantized: bool) -> str:
    """The most likely cause of the difference between the two models, and the remedy."""
    if 2 * len(theirs.capped) >= sentences:
        return (
            f"The checkpoint does not end {len(theirs.capped):,} of {sentences:,} translations, but repeats itself up "
            "to the length limit, where rounding decides. Remedy: a checkpoint that was trained longer."
        )
    lost = len(set(ours.capped) - set(theirs.capped))
    if quantized:
        more = f" ({lost:,} translations no longer end)" if lost else ""
        return f"The quantised weights are too coarse{more}. Remedy: a finer --quantization."
    return (
        "The weights are not quantised, so a finer --quantization will not help. Remedy: --format fairseq, and please "
        "report the architecture."
    )


def _compared(
    ours: Translated,
    theirs: Translated,
    subwords: Subwords,
    target: Optional[str],
    places: Optional[Sequence[int]] = None,
) -> Check:
    """Compares translations. places: of the sentences that count; empty or None: all."""
    chosen = places or range(len(ours.hypotheses))
    tokens = [[answer.hypotheses[at] for at in chosen] for answer in (ours, theirs)]
    texts = [[subwords.decode(symbols) for symbols in hypotheses] for hypotheses in tokens]
    capped = len({*ours.capped, *theirs.capped} & set(chosen))
    # effective_order: sentences of three words have no 4-grams, but can still be equal
    known = target if family(target) else None  # otherwise the letters decide; both texts have the same language anyway
    metric = BLEU(tokenize=bleu_tokenizer(known, texts[1]).name, effective_order=True)
    score = metric.corpus_score(texts[0], [texts[1]]).score
    return Check(len(chosen), share_identical(*tokens), score, str(metric.get_signature()), capped)
