"""A MarianMT, M2M100 or NLLB folder as the teacher to start from, converted to fairseq's transformer.

Marian differs from fairseq in three ways, which the copy makes up for exactly:

* its sinusoids have other frequencies: the copy has learned positions that begin with its table;
* its decoder starts from <pad> instead of </s>, which occurs nowhere else in the decoder's input: the difference of
  their embeddings is added to the decoder's first position;
* it adds a bias to its logits. The last layer norm's output y has the same (1/g) · y for every input, namely Σ b/g with
  its gain g and bias b, so a matrix can add a constant to the logits: a multiple of (1/g)ᵀ. The copy's output
  projection has it, and so is not tied to the embeddings.
"""

import contextlib
from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.checkpoints.huggingface import Folder
from kd_plugin.checkpoints.transformers_library import model_type
from kd_plugin.errors import KDPluginError
from kd_plugin.initialise import activations
from kd_plugin.initialise.teacher import Batch, Teacher, agreement, not_expressible, sample_batch
from kd_plugin.initialise.whole import EMBEDDINGS, OUTPUT, SIDES, Whole

KINDS = ("marian", "m2m_100")
ROLES = ("bos", "pad", "eos", "unk")
FIRST = 2  # fairseq's first learned position: padding_idx + 1


def open_huggingface(path: str, approximate: bool) -> Teacher:
    """The teacher in a folder.

    Args:
        approximate: whether an activation that fairseq lacks may be approximated

    Raises:
        KDPluginError: as `Folder`, or its model cannot be expressed as fairseq's transformer
    """
    if model_type(path) not in KINDS:
        raise KDPluginError(
            f"{path}: a student can start from MarianMT (OPUS-MT), M2M100 and NLLB, not from {model_type(path)}, which "
            "fairseq's transformer cannot express. Remedy: start from random weights; this teacher can still teach"
        )
    folder = Folder(path)
    config, model = folder.model.config, folder.model
    activation = activations.fairseq_activation(config.activation_function, approximate)
    if activation is None:
        hint = "; --approximate-activation may help" if config.activation_function in activations.SWISH else ""
        raise not_expressible(path, f"its activation {config.activation_function!r} is none of fairseq's{hint}")
    dictionaries, ids = zip(*(_symbols(folder, side) for side in (0, 1)))
    weights: Dict[str, Tensor] = {
        name[len("model.") :]: weight.detach()
        for name, weight in model.state_dict().items()
        if ".layers." in name or name.endswith(("encoder.layer_norm.weight", "encoder.layer_norm.bias"))
        or name.startswith("model.decoder.layer_norm.")
    }  # fmt: skip
    tables = [model.get_encoder().get_input_embeddings(), model.get_decoder().get_input_embeddings()]
    for side, table, rows in zip(SIDES, tables, ids):
        weights[EMBEDDINGS[side]] = _rows(table.weight, rows)
    head = model.get_output_embeddings()
    weights[OUTPUT] = _rows(head.weight, ids[1])
    options = _options(config)
    options["activation_fn"] = activation
    ties_output = torch.equal(weights[OUTPUT], weights[EMBEDDINGS["decoder"]])
    shared = dictionaries[0].symbols == dictionaries[1].symbols
    options["share_all_embeddings"] = shared and ties_output and torch.equal(*(weights[EMBEDDINGS[s]] for s in SIDES))
    options["share_decoder_input_output_embed"] = ties_output
    notes: List[str] = []
    if config.model_type == "marian":
        _positions(weights, options, folder, dictionaries[1])
        _output_bias(weights, options, folder, ids[1], notes)
    else:
        notes.append(
            "its sentences begin with a language symbol: the student's do so only if its data have them as symbols"
        )
    own, longest = _own_logits(folder, ids), folder.max_positions()
    is_approximate = config.activation_function not in activations.EXACT
    if is_approximate:
        activations.scale(weights)
    whole = Whole(options, weights, (dictionaries[0], dictionaries[1]))
    with activations.approximated(model) if is_approximate else contextlib.nullcontext():
        difference = agreement(whole, own, path, longest)
    if is_approximate:
        sentences = sample_batch(whole, longest)
        with torch.no_grad(), activations.approximated(model):
            after = own(sentences)[0]
        with torch.no_grad():
            change = activations.change_of(own(sentences)[0], after)
        notes.append(f"its activation {config.activation_function} is approximated by a scaled gelu: {change}")
    limits = {f"max_{side}_positions": options[f"max_{side}_positions"] for side in ("source", "target")}
    what = f"Hugging Face {type(model).__name__}"
    return Teacher(
        path, folder.sha256, what, folder.parameters, whole, None, limits, None, notes, difference
    )  # fmt: skip


def _symbols(folder: Folder, side: int) -> Tuple[Dictionary, List[Optional[int]]]:
    """A fairseq dictionary of one side's symbols in the model's order, and each symbol's row in the model."""
    vocabulary = dict(folder.vocabularies()[side])
    for token in folder.tokenizer.all_special_tokens:  # M2M100's languages
        vocabulary.setdefault(str(token), int(folder.tokenizer.convert_tokens_to_ids(token)))
    dictionary, special = Dictionary(), {}
    for role in ROLES:
        index = folder.special(role, vocabulary)
        if index is not None:
            special[index] = dictionary[getattr(dictionary, role)()]
    rows: Dict[str, Optional[int]] = dict.fromkeys(dictionary.symbols)
    rows.update({symbol: index for index, symbol in special.items()})
    for symbol, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        if index not in special and index < folder.sizes[side] and symbol not in rows:
            dictionary.add_symbol(symbol)
            rows[symbol] = index
    return dictionary, [rows[symbol] for symbol in dictionary.symbols]


def _rows(weight: Tensor, ids: List[Optional[int]]) -> Tensor:
    """The rows of symbols; zeros for a symbol that the model lacks, such as Marian's <s>."""
    rows = weight.detach().float()[[index or 0 for index in ids]]
    rows[[index is None for index in ids]] = 0
    return rows


def _options(config: Any) -> Dict[str, Any]:
    from fairseq.models.transformer import TransformerConfig

    from kd_plugin.checkpoints.stock import transformer_fields

    own: Dict[str, Any] = transformer_fields(TransformerConfig())
    before = config.model_type == "m2m_100"
    for side in SIDES:
        own[f"{side}_embed_dim"] = int(config.d_model)
        own[f"{side}_ffn_embed_dim"] = int(getattr(config, f"{side}_ffn_dim"))
        own[f"{side}_layers"] = int(getattr(config, f"{side}_layers"))
        own[f"{side}_attention_heads"] = int(getattr(config, f"{side}_attention_heads"))
        own[f"{side}_normalize_before"] = before
    own["decoder_input_dim"] = own["decoder_output_dim"] = int(config.d_model)
    own["no_scale_embedding"] = not config.scale_embedding
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        own[name] = float(getattr(config, name))
    own["max_source_positions"] = own["max_target_positions"] = int(config.max_position_embeddings)
    return own


def _positions(weights: Dict[str, Tensor], options: Dict[str, Any], folder: Folder, target: Dictionary) -> None:
    halves = folder.model.get_encoder(), folder.model.get_decoder()
    for side, half in zip(SIDES, halves):
        table = half.embed_positions.weight.detach().float()
        weights[f"{side}.embed_positions.weight"] = torch.cat([table.new_zeros(FIRST, table.size(1)), table])
        options[f"{side}_learned_pos"] = True
    start = int(folder.model.config.decoder_start_token_id)
    embedding = halves[1].get_input_embeddings().weight.detach().float()
    scale = 1.0 if options["no_scale_embedding"] else options["decoder_embed_dim"] ** 0.5
    ends = weights[EMBEDDINGS["decoder"]][target.eos()]
    weights["decoder.embed_positions.weight"][FIRST] += scale * (embedding[start] - ends)


def _output_bias(
    weights: Dict[str, Tensor], options: Dict[str, Any], folder: Folder, ids: List[Optional[int]], notes: List[str]
) -> None:
    bias = getattr(folder.model, "final_logits_bias", None)
    if bias is None or not bool(bias.any()):
        return
    norm = f"decoder.layers.{options['decoder_layers'] - 1}.final_layer_norm"
    gain, shift = (weights[f"{norm}.{part}"].double() for part in ("weight", "bias"))
    # far from zero, whatever the sum was: the norm's bias grows by ±gain, and the projection takes it back
    sign = 1.0 if (shift / gain).sum() >= 0 else -1.0
    weights[f"{norm}.bias"] = (shift + sign * gain).float()
    constant = (shift / gain + sign).sum()
    projection = weights[OUTPUT].double()
    added = _rows(bias.reshape(-1, 1), ids).double() - sign * (projection @ gain).unsqueeze(1)
    weights[OUTPUT] = (projection + added / gain / constant).float()
    options["share_all_embeddings"] = options["share_decoder_input_output_embed"] = False
    notes.append("it adds a bias to its logits, so the student's output projection is not tied to its embeddings")


def _own_logits(folder: Folder, ids: Any) -> Any:
    config = folder.model.config
    rows = [torch.tensor([index if index is not None else 0 for index in side]) for side in ids]
    columns = torch.tensor([column for column, index in enumerate(ids[1]) if index is not None])

    def own(batch: Batch) -> Tuple[Tensor, Tensor]:
        places = torch.arange(batch.source.size(1))
        previous = rows[1][batch.previous]
        previous[:, 0] = int(config.decoder_start_token_id)
        logits = folder.model(
            input_ids=rows[0][batch.source],
            attention_mask=(places < batch.lengths.unsqueeze(1)).long(),
            decoder_input_ids=previous,
            decoder_attention_mask=(places < batch.targets.unsqueeze(1)).long(),
        ).logits
        return logits[..., rows[1][columns]], columns

    return own
