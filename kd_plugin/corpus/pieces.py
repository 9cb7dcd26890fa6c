"""Reduces a sentencepiece model to the pieces that a corpus needs; it can still segment any text."""

from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Set

from kd_plugin.errors import KDPluginError

INSTALL = "pip install 'kd-plugin[hf]'"
UNIGRAM, BPE = 1, 2  # sentencepiece's model_type
NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # a piece's type


class Counts(NamedTuple):
    """Statistics of a corpus that a model has segmented.

    unknown: number of pieces that the model does not have
    changed: number of lines that another model segments differently
    """

    lines: int
    pieces: Dict[str, int]
    unknown: int
    changed: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.pieces.values()) + self.unknown


class Pieces:
    """A sentencepiece model from which pieces can be removed.

    Args:
        content: of the model's file
        name: the model's, for errors

    Raises:
        KDPluginError: not a sentencepiece model, a model of words or characters, or protobuf is not installed
    """

    def __init__(self, content: bytes, name: str):
        import sentencepiece

        try:
            from sentencepiece import sentencepiece_model_pb2
        except ImportError as error:
            raise KDPluginError(f"{name}: {error}, which is needed to read its pieces. Remedy: {INSTALL}") from error
        self._proto = sentencepiece_model_pb2.ModelProto()
        self.content = content
        try:
            self._proto.ParseFromString(content)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except Exception as error:  # protobuf's error class is not public
            raise KDPluginError(
                f"{name}: not a sentencepiece model ({error}). Remedy: the teacher's .model file"
            ) from error
        self._kind = self._proto.trainer_spec.model_type
        if self._kind not in (UNIGRAM, BPE):
            raise KDPluginError(
                f"{name}: is a sentencepiece model of words or characters. Remedy: a unigram or bpe model"
            )

    @property
    def symbols(self) -> List[str]:
        """The pieces that can occur in segmented text, in the model's order."""
        return [piece.piece for piece in self._proto.pieces if piece.type in (NORMAL, USER_DEFINED, BYTE)]

    def count(self, lines: Iterable[str], other: Optional["Pieces"] = None) -> Counts:
        """Segments a corpus and, if `other` is given, compares the result with that model's."""
        known = set(self.symbols)
        counts: Counter[str] = Counter()
        number = changed = 0
        for line in lines:
            number += 1
            pieces = self.encode(line)
            counts.update(pieces)
            changed += other is not None and other.encode(line) != pieces
        unknown = sum(count for piece, count in counts.items() if piece not in known)
        return Counts(number, {piece: n for piece, n in counts.items() if piece in known}, unknown, changed)

    def needed(self, counts: Counts, coverage: float) -> Set[str]:
        """The most frequent pieces that together cover `coverage` of a corpus, and what segmentation needs in addition:
        the corpus's characters, bytes, and the intermediate pieces of BPE merges."""
        wanted, covered = set(), 0
        total = sum(counts.pieces.values())
        for piece, number in sorted(counts.pieces.items(), key=lambda item: (-item[1], item[0])):
            if covered >= coverage * total:
                break
            wanted.add(piece)
            covered += number
        known = set(self.symbols)
        kept = {symbol.piece for symbol in self._proto.pieces if symbol.type in (BYTE, USER_DEFINED)} | wanted
        kept |= {character for piece in counts.pieces for character in piece} & known
        if self._kind == BPE:
            scores = {symbol.piece: symbol.score for symbol in self._proto.pieces if symbol.type == NORMAL}
            kept |= {part for piece in wanted for part in _merged(piece, scores)}
        return kept

    def without(self, kept: Set[str]) -> "Pieces":
        """The model with only these pieces and its special ones."""
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        del proto.pieces[:]
        ordinary = (NORMAL, USER_DEFINED, BYTE, UNUSED)
        proto.pieces.extend(p for p in self._proto.pieces if p.type not in ordinary or p.piece in kept)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return Pieces(proto.SerializeToString(), "the reduced model")

    def encode(self, line: str) -> List[str]:
        return list(self._processor.encode(line, out_type=str))


def _merged(piece: str, scores: Dict[str, float]) -> List[str]:
    """The pieces that BPE forms on the way from characters to a piece."""
    parts, made = list(piece), []
    while len(parts) > 1:
        pairs = [(scores[a + b], -at) for at, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in scores]
        if not pairs:
            break  # added by hand, not merged from other pieces
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made.append(parts[at])
    return made


def read_pieces(path: Path, flag: str) -> Pieces:
    try:
        return Pieces(path.read_bytes(), f"{flag} {path}")
    except OSError as error:
        raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: the teacher's sentencepiece model") from error
