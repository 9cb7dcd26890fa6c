"""A sentencepiece model cut down to the pieces that a corpus needs; it still segments every text."""

from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Set

from kd_plugin.errors import KDPluginError

INSTALL = "pip install 'kd-plugin[hf]'"
UNIGRAM, BPE = 1, 2  # of sentencepiece's model_type
NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # of a piece's type


class Counts(NamedTuple):
    """What a model makes of a corpus.

    unknown: pieces that the model itself does not have
    changed: lines that another model segments otherwise
    """

    lines: int
    pieces: Dict[str, int]
    unknown: int
    changed: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.pieces.values()) + self.unknown


class Pieces:
    """A sentencepiece model whose pieces can be left out.

    Args:
        content: of the model's file
        name: of it, for errors

    Raises:
        KDPluginError: no sentencepiece model, one of words or characters, or protobuf is not installed
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
        except Exception as error:  # protobuf's own kind of error is no public name
            raise KDPluginError(
                f"{name}: no sentencepiece model ({error}). Remedy: the teacher's .model file"
            ) from error
        self._kind = self._proto.trainer_spec.model_type
        if self._kind not in (UNIGRAM, BPE):
            raise KDPluginError(
                f"{name}: a sentencepiece model of words or characters. Remedy: one of kind unigram or bpe"
            )

    @property
    def symbols(self) -> List[str]:
        """The pieces that text can become, in the model's order."""
        return [piece.piece for piece in self._proto.pieces if piece.type in (NORMAL, USER_DEFINED, BYTE)]

    def count(self, lines: Iterable[str], other: Optional["Pieces"] = None) -> Counts:
        """Segment a corpus, and compare with what another model makes of it."""
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
        """The most frequent pieces that together are `coverage` of a corpus, and what segmenting needs beside them:
        each of its characters, bytes, and the pieces that BPE merges on the way."""
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
        """The model with these pieces alone, beside its special ones."""
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        del proto.pieces[:]
        ordinary = (NORMAL, USER_DEFINED, BYTE, UNUSED)
        proto.pieces.extend(p for p in self._proto.pieces if p.type not in ordinary or p.piece in kept)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return Pieces(proto.SerializeToString(), "the model without pieces")

    def encode(self, line: str) -> List[str]:
        return list(self._processor.encode(line, out_type=str))


def _merged(piece: str, scores: Dict[str, float]) -> List[str]:
    """The pieces that BPE makes on its way from characters to a piece."""
    parts, made = list(piece), []
    while len(parts) > 1:
        pairs = [(scores[a + b], -at) for at, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in scores]
        if not pairs:
            break  # somebody has added it: it is not merged from others
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made.append(parts[at])
    return made


def read_pieces(path: Path, flag: str) -> Pieces:
    try:
        return Pieces(path.read_bytes(), f"{flag} {path}")
    except OSError as error:
        raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: the teacher's sentencepiece model") from error
