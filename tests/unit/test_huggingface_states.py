"""Inner states of models of transformers at fairseq's positions, beside transformers' own, sentence by sentence."""

import pytest
import torch

from kd_plugin.checkpoints.tokenizer import Languages
from kd_plugin.models.states import Inner, StateKey
from kd_plugin.teachers.base import Request, Signal
from kd_plugin.teachers.huggingface import fit_folder
from kd_plugin.teachers.online import OnlineTeacher
from tests.unit.huggingface_folders import KINDS, T5_PREFIX
from tests.unit.test_huggingface import SOURCES, TARGETS, batch_of, dictionary_of, folders, rows_of

pytest.importorskip("transformers", reason="transformers is not installed")
__all__ = ["folders"]  # a fixture

OUTPUTS = [StateKey("output", "encoder", 0), StateKey("output", "decoder", 0), StateKey("output", "decoder", 1)]
ATTENTIONS = [StateKey("self", "encoder", 0), StateKey("self", "decoder", 1), StateKey("cross", "decoder", 1)]
PROJECTIONS = [StateKey(what, side, 0) for what in ("query", "key", "value") for side in ("encoder", "decoder")]


def teacher_of(folder, kind):
    dictionaries = tuple(map(dictionary_of, folder.vocabularies()))
    member = fit_folder(folder, Languages(*KINDS[kind]), dictionaries, "refuse")
    return OnlineTeacher([member]), dictionaries


def own(folder, kind, number):
    """transformers' outputs for a sentence pair, and fairseq's positions in its source and target."""
    tokenizer, model = folder.tokenizer, folder.model
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang, tokenizer.tgt_lang = KINDS[kind]
    before = {"t5": T5_PREFIX, "madlad": "<2de> ", "marian, several targets": ">>deu<< "}.get(kind, "")
    source = tokenizer(before + SOURCES[number], return_tensors="pt")
    labels = tokenizer(text_target=TARGETS[number], return_tensors="pt")["input_ids"]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**source, labels=labels, output_hidden_states=True, output_attentions=True)
    ids = source["input_ids"][0].tolist()
    end = ids.index(model.config.eos_token_id)
    length = len(tokenizer.tokenize(TARGETS[number])) + 1
    first = 0 if kind in ("mbart", "nllb, tags at the end") else found.logits.size(1) - length
    start = end - len(tokenizer.tokenize(SOURCES[number]))
    return found, slice(start, end + 1), slice(first, first + length)


def own_state(key, found, source, target):
    positions = source if key.side == "encoder" else target
    if key.what == "output":
        states = found.encoder_hidden_states if key.side == "encoder" else found.decoder_hidden_states
        return states[key.layer + 1][0, positions]
    if key.what == "cross":
        weights, columns = found.cross_attentions[key.layer], source
    else:
        weights = (found.encoder_attentions if key.side == "encoder" else found.decoder_attentions)[key.layer]
        columns = positions
    weights = weights[0, :, positions, columns].transpose(0, 1)
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_attention_are_those_of_transformers(kind, folders):  # noqa: F811
    """Whichever side is padded where; fairseq has no language symbols, and attention to them is left out."""
    folder = folders(kind)
    implementation = folder.model.config._attn_implementation
    teacher, dictionaries = teacher_of(folder, kind)
    assert {Signal.HIDDEN, Signal.ATTENTION} <= teacher.provides
    assert (teacher.shape.encoder, teacher.shape.decoder) == ((1, 16, 2), (2, 16, 2))
    keys = OUTPUTS + ATTENTIONS
    for padding in [(True, False), (False, True)]:
        batch = batch_of(folder, dictionaries, *padding)
        rows = rows_of(batch)
        folder.model.set_attn_implementation(implementation)
        answer = teacher.answer(batch, Request(rows[::2], torch.float32, inner=Inner(frozenset(keys), rows)))
        assert folder.model.config._attn_implementation == implementation
        references = [own(folder, kind, number) for number in batch["id"].tolist()]
        width = {"encoder": batch["net_input"]["src_tokens"].size(1), "decoder": batch["target"].size(1)}
        for key in keys:
            parts = [own_state(key, *reference) for reference in references]
            found = answer.states[key]
            assert len(found) == sum(map(len, parts))
            if key.what != "output":
                keys_of = "encoder" if key.what == "cross" else key.side
                assert found.shape[1:] == (2, width[keys_of])
                left = padding[0] if keys_of == "encoder" else padding[1]
                parts = [
                    torch.nn.functional.pad(
                        part, [(width[keys_of] - part.size(2)) * left, (width[keys_of] - part.size(2)) * (not left)]
                    )
                    for part in parts
                ]
            torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-4, msg=str((padding, key)))
    folder.model.set_attn_implementation(implementation)


@pytest.mark.parametrize("kind", ["marian", "nllb", "t5"])
def test_projections_of_self_attention_are_those_of_its_modules(kind, folders):  # noqa: F811
    folder = folders(kind)
    teacher, dictionaries = teacher_of(folder, kind)
    batch = batch_of(folder, dictionaries)
    rows = rows_of(batch)
    inner = Inner(frozenset(PROJECTIONS), rows)
    states = teacher.answer(batch, Request(rows, torch.float32, inner=inner)).states
    for side in ("encoder", "decoder"):
        stack = folder.model.get_encoder() if side == "encoder" else folder.model.get_decoder()
        if kind == "t5":
            attention, norm = stack.block[0].layer[0].SelfAttention, stack.block[0].layer[0].layer_norm
            modules = {"query": attention.q, "key": attention.k, "value": attention.v}
        else:
            attention = stack.layers[0].self_attn
            norm = stack.layers[0].self_attn_layer_norm if kind == "nllb" else torch.nn.Identity()
            modules = {"query": attention.q_proj, "key": attention.k_proj, "value": attention.v_proj}
        parts = []
        for number in batch["id"].tolist():
            found, source, target = own(folder, kind, number)
            hidden = found.encoder_hidden_states if side == "encoder" else found.decoder_hidden_states
            with torch.no_grad():
                parts.append(norm(hidden[0])[0, source if side == "encoder" else target])
        for what, module in modules.items():
            with torch.no_grad():
                expected = module(torch.cat(parts))
            torch.testing.assert_close(states[StateKey(what, side, 0)], expected, rtol=1e-4, atol=1e-4, msg=what)
