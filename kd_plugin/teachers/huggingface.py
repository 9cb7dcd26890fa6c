"""A Hugging Face translation model as a teacher."""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.checkpoints.huggingface import Folder
from kd_plugin.checkpoints.tokenizer import Languages, Layout
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import LinearHead, Project, new_buffer
from kd_plugin.models.states import Inner, Shape, States
from kd_plugin.teachers.huggingface_states import Positions, StatesRecorder, shape_of
from kd_plugin.teachers.member import Member, at_rows
from kd_plugin.teachers.vocabulary import Symbols, match

T5_TYPES = ("t5", "mt5", "umt5")
AGREEMENT = 1e-3  # largest difference between our logits and the model's own, relative to the largest logit


class Sentences(NamedTuple):
    """One side of a batch in transformers' format.

    ids, mask: (batch, length) int64, padded on the right
    shift: (batch,) to add to a fairseq position to get the position here
    """

    ids: Tensor
    mask: Tensor
    shift: Tensor


class HuggingFaceMember(Member):
    """An encoder–decoder of transformers that answers for fairseq's batches.

    Args:
        folder: the opened model folder
        languages: source and target language
        pad: the student's padding index
        source, target: the student's symbols as the model has them
    """

    def __init__(self, folder: Folder, languages: Languages, pad: int, source: Symbols, target: Symbols):
        super().__init__(folder.model, folder.path, folder.sha256, folder.parameters, source, target)
        self._languages, self._student_pad = languages, pad
        self._layout: Layout = folder.layout(languages)
        self._pad = int(self.model.config.pad_token_id)
        self._limit = folder.max_positions()
        self._scale = _scale(self.model)
        _check_projection(self)

    def max_positions(self) -> Any:
        """As Member's."""
        source = self._limit - len(self._layout.source_prefix) - len(self._layout.source_suffix) + 1
        return source, self._limit - len(self._layout.target_prefix) + 1

    def identity(self) -> Dict[str, Any]:
        """As Member's."""
        return {**super().identity(), "languages": list(self._languages)}

    @property
    def head(self) -> LinearHead:
        """The projection from features to logits."""
        layer = self.model.get_output_embeddings()
        bias = getattr(self.model, "final_logits_bias", None)
        parts = [part.reshape(-1) for part in (layer.bias, bias) if part is not None]
        return LinearHead(layer.weight, sum(parts[1:], parts[0]) if parts else None)

    @property
    def shape(self) -> Optional[Shape]:
        """As Member's."""
        return shape_of(self.model)

    def features(
        self, batch: Dict[str, Any], rows: Tensor, inner: Optional[Inner] = None
    ) -> Tuple[Tensor, Project, States]:
        """As Member's."""
        net_input = batch["net_input"]
        source, target = self._source(net_input["src_tokens"]), self._target(net_input["prev_output_tokens"])
        places = self._places(rows, net_input["prev_output_tokens"], target)
        if inner is None:
            return at_rows(places, self.decoded(source, target)), self.head, {}
        recorder = StatesRecorder(self.model, inner.keys)
        with recorder:
            hidden = self.decoded(source, target, attention=recorder.wants_attention)
        positions = {
            "encoder": self._source_positions(net_input["src_tokens"], source),
            "decoder": Positions(
                self._places(inner.rows, net_input["prev_output_tokens"], target),
                *self._columns(net_input["prev_output_tokens"], target),
            ),
        }
        return at_rows(places, hidden), self.head, recorder.states(positions)

    def decoded(self, source: Sentences, target: Sentences, attention: bool = False) -> Tensor:
        """(batch, length, dimension): the decoder's last hidden states, the input of `head`.

        Args:
            attention: also compute the attention's probabilities as tensors
        """
        more = {"output_attentions": True} if attention else {}
        encoded = self.model.get_encoder()(input_ids=source.ids, attention_mask=source.mask, **more)[0]
        hidden = self.model.get_decoder()(
            input_ids=target.ids,
            attention_mask=target.mask,
            encoder_hidden_states=encoded,
            encoder_attention_mask=source.mask,
            use_cache=False,
            **more,
        )[0]
        return hidden if self._scale == 1.0 else hidden * self._scale

    def _places(self, rows: Tensor, tokens: Tensor, target: Sentences) -> Tensor:
        """Positions in the model's flattened target of positions in fairseq's."""
        length = tokens.size(1)
        sentence, position = torch.div(rows, length, rounding_mode="floor"), rows % length
        return sentence * target.ids.size(1) + position + target.shift[sentence]

    def _columns(self, tokens: Tensor, target: Sentences) -> Tuple[Tensor, Tensor]:
        """(batch, length) the model's target positions of fairseq's, 0 for padding; and which are not padding."""
        real = tokens.ne(self._student_pad)
        columns = torch.arange(tokens.size(1), device=tokens.device) + target.shift.unsqueeze(1)
        return columns.masked_fill(~real, 0), real

    def _source_positions(self, tokens: Tensor, source: Sentences) -> Positions:
        """Of fairseq's source tokens in the model's. The end of sentence comes first in the suffix."""
        real = tokens.ne(self._student_pad)
        columns = real.long().cumsum(dim=1) - 1 + len(self._layout.source_prefix)
        columns = columns.masked_fill(~real, 0)
        starts = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * source.ids.size(1)
        places = (starts + columns)[real]
        return Positions(places, columns, real)

    def _source(self, tokens: Tensor) -> Sentences:
        prefix, suffix = self._layout.source_prefix, self._layout.source_suffix
        lengths, _, ids = self._on_the_left(tokens, self.source_indices)
        body = lengths - 1  # without end of sentence, which is part of the suffix
        placed = self._with_prefix(ids, prefix, len(suffix))
        for number, symbol in enumerate(suffix):
            placed.scatter_(1, (body + len(prefix) + number).unsqueeze(1), symbol)
        return self._padded(placed, body + len(prefix) + len(suffix), lengths)

    def _target(self, tokens: Tensor) -> Sentences:
        """Converts prev_output_tokens; the prefix replaces fairseq's end of sentence at their beginning."""
        prefix = self._layout.target_prefix
        lengths, leading, ids = self._on_the_left(tokens, self.target_indices)
        placed = self._with_prefix(ids[:, 1:], prefix, 0)
        return self._padded(placed, lengths - 1 + len(prefix), len(prefix) - 1 - leading)

    def _on_the_left(self, tokens: Tensor, indices: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        """The length of each sentence, its number of padding symbols on the left, and its ids, padded on the right.

        Right padding, because some models count positions from the beginning of a row, including padding.
        """
        assert indices is not None
        is_symbol = tokens.ne(self._student_pad)
        order = is_symbol.long().argsort(dim=1, descending=True, stable=True)
        ids = indices[tokens.gather(1, order)]
        return is_symbol.sum(dim=1), is_symbol.long().argmax(dim=1), ids

    def _with_prefix(self, ids: Tensor, prefix: Any, room: int) -> Tensor:
        first = torch.tensor(prefix, dtype=torch.int64, device=ids.device).expand(ids.size(0), -1)
        return torch.cat([first, ids, ids.new_full((ids.size(0), room), self._pad)], dim=1)

    def _padded(self, ids: Tensor, lengths: Tensor, shift: Tensor) -> Sentences:
        mask = torch.arange(ids.size(1), device=ids.device) < lengths.unsqueeze(1)
        ids, mask = ids.masked_fill(~mask, self._pad), mask.long()
        longest = int(mask.sum(dim=1).max()) if ids.device.type == "cpu" else ids.size(1)  # do not wait for a GPU
        return Sentences(ids[:, :longest], mask[:, :longest], shift)


def fit_folder(
    folder: Folder,
    languages: Languages,
    dictionaries: Tuple[Dictionary, Dictionary],
    missing_symbols: str,
    unsaid: Sequence[str] = (),
) -> HuggingFaceMember:
    """A folder as a teacher for this student.

    Args:
        dictionaries: the student's, source and target
        unsaid: the student's symbols that it neither reads nor predicts, and may lack

    Raises:
        KDPluginError: a language is missing or unknown, or the teacher lacks some of the student's symbols
    """
    sides = [
        _symbols(folder, name, dictionary, vocabulary, layer, missing_symbols, unsaid)
        for name, dictionary, vocabulary, layer in zip(
            ("source", "target"),
            dictionaries,
            folder.vocabularies(),
            (folder.model.get_input_embeddings(), folder.model.get_output_embeddings()),
        )
    ]
    return HuggingFaceMember(folder, languages, dictionaries[1].pad(), *sides)


def _symbols(
    folder: Folder,
    side: str,
    dictionary: Dictionary,
    vocabulary: Dict[str, int],
    layer: Any,
    missing_symbols: str,
    unsaid: Sequence[str],
) -> Symbols:
    rows = int(layer.weight.size(0))  # a tokenizer may have symbols beyond the model's
    known = {symbol: index for symbol, index in vocabulary.items() if index < rows}
    for name in ("bos", "pad", "eos", "unk"):  # matched by role, since names may differ
        known.pop(dictionary[getattr(dictionary, name)()], None)
    for name in ("bos", "pad", "eos", "unk"):
        index = folder.special(name, vocabulary)
        if index is not None and index < rows:
            known[dictionary[getattr(dictionary, name)()]] = index
    unknown = known.get(dictionary[dictionary.unk()])
    if unknown is None:
        raise KDPluginError(f"{folder.path}: its tokenizer has no unknown symbol. Remedy: copy the folder again")
    unsaid = [dictionary[dictionary.bos()], dictionary[dictionary.pad()], *unsaid]
    where = f"{side} vocabulary"
    return match(dictionary.symbols, known.get, rows, unknown, folder.path, where, missing_symbols, unsaid)


def _scale(model: Any) -> float:
    """The factor by which T5 with tied embeddings multiplies features before the projection; 1 for other models."""
    config = model.config
    scales = getattr(config, "scale_decoder_outputs", None)  # from transformers 5 on
    if scales is None:
        scales = config.tie_word_embeddings
    return float(config.d_model**-0.5) if config.model_type in T5_TYPES and scales else 1.0


@torch.no_grad()
def _check_projection(member: HuggingFaceMember) -> None:
    """Compares our logits with the model's own, once, since another version of transformers may differ."""
    model = member.model
    device = next(model.parameters()).device
    unknown = torch.tensor([[1, 2, 3]], device=device) % int(model.get_input_embeddings().weight.size(0))
    ones = torch.ones_like(unknown)
    sentences = Sentences(unknown, ones, torch.zeros(1, device=device))
    hidden = member.decoded(sentences, sentences)
    ours = member.head(hidden[0], new_buffer)
    own = model(input_ids=unknown, attention_mask=ones, decoder_input_ids=unknown, decoder_attention_mask=ones).logits[
        0
    ]
    finite = torch.isfinite(own)
    error = (ours - own)[finite].abs().max() / own[finite].abs().max().clamp(min=1e-6)
    if not bool(error < AGREEMENT):
        raise KDPluginError(
            f"{member.path}: {type(model).__name__} in this version of transformers computes its logits differently "
            f"than expected (by {float(error):.1%}). Remedy: another version of transformers; please report this"
        )
