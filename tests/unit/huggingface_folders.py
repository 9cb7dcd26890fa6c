"""Folders of transformers' real classes with small random weights and tokenizers of two invented languages."""

import json
import shutil
from pathlib import Path
from typing import List, Optional

import torch

from tests.unit.sentencepiece_models import sentences, train

SIZES = dict(
    d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
)  # fmt: skip
# what --teacher-source-lang and --teacher-target-lang are for each
KINDS = {
    "marian": (None, None),
    "marian, two vocabularies": (None, None),
    "marian, several targets": (None, "deu"),
    "nllb": ("eng_Latn", "deu_Latn"),
    "nllb, tags at the end": ("eng_Latn", "deu_Latn"),
    "m2m100": ("en", "de"),
    "mbart50": ("en_XX", "de_DE"),
    "mbart": ("en_XX", "de_DE"),
    "t5": ("en", "de"),
    "madlad": (None, "de"),
}
T5_PREFIX = "translate English to German: "


def make_folder(kind: str, folder: Path, lines: Optional[List[str]] = None, size: int = 200) -> Path:
    """A model of this kind in `folder` with its tokenizer, of `size` pieces learned from `lines`."""
    import transformers

    lines = lines or sentences("en") + sentences("de")
    t5 = kind in ("t5", "madlad")
    ids = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1) if t5 else {}
    asked = ["<2de>", "<2fr>"] if kind == "madlad" else []
    folder.mkdir(parents=True)
    spm = train(folder / "joint.spm", [*lines, T5_PREFIX], size, user_defined_symbols=asked, **ids)
    pieces = _pieces(spm)
    torch.manual_seed(7)
    if kind.startswith("marian"):
        model, tokenizer = _marian(kind, folder, spm, pieces)
    elif kind.startswith("nllb"):
        legacy = kind != "nllb"
        tokenizer = transformers.NllbTokenizer(
            str(spm), src_lang="eng_Latn", tgt_lang="deu_Latn", legacy_behaviour=legacy
        )
        model = transformers.M2M100ForConditionalGeneration(_m2m100_config(len(tokenizer) + 3))
    elif kind == "m2m100":
        vocabulary = {symbol: at for at, symbol in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces[3:]])}
        (folder / "all.json").write_text(json.dumps(vocabulary))
        tokenizer = transformers.M2M100Tokenizer(str(folder / "all.json"), str(spm), src_lang="en", tgt_lang="de")
        model = transformers.M2M100ForConditionalGeneration(_m2m100_config(len(vocabulary) + 108))
    elif kind.startswith("mbart"):
        cls = transformers.MBart50Tokenizer if kind == "mbart50" else transformers.MBartTokenizer
        tokenizer = cls(str(spm), src_lang="en_XX", tgt_lang="de_DE")
        config = transformers.MBartConfig(vocab_size=len(tokenizer) + 2, decoder_start_token_id=2, **SIZES)
        model = transformers.MBartForConditionalGeneration(config)
    else:
        tokenizer = transformers.T5Tokenizer(str(spm), extra_ids=5, legacy=False)
        tasks = {"translation_en_to_de": {"prefix": T5_PREFIX}, "summarization": {"prefix": "summarize: "}}
        more = {} if asked else {"task_specific_params": tasks}
        config = transformers.T5Config(
            vocab_size=len(tokenizer) + 4, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=2,
            num_heads=2, tie_word_embeddings=kind == "t5", decoder_start_token_id=0,
            feed_forward_proj="relu" if kind == "t5" else "gated-gelu", **more,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in [] if t5 else model.parameters():  # a little surer than at the beginning of a training
            parameter.mul_(2)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def _pieces(spm: Path):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def _m2m100_config(vocab: int):
    import transformers

    return transformers.M2M100Config(vocab_size=vocab, decoder_start_token_id=2, scale_embedding=True, **SIZES)


def _marian(kind: str, folder: Path, spm: Path, pieces):
    import transformers

    tags = [">>deu<<", ">>fra<<"] if "several" in kind else []
    vocabulary = {symbol: at for at, symbol in enumerate(["</s>", "<unk>", *tags, *pieces[3:], "<pad>"])}
    separate = "two" in kind
    for name in ("source.spm", "target.spm"):
        shutil.copy(spm, folder / name)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    extra = {}
    if separate:
        other = {symbol: at for at, symbol in enumerate(["</s>", "<unk>", *reversed(pieces[3:-20]), "<pad>"])}
        (folder / "target_vocab.json").write_text(json.dumps(other))
        extra = {"target_vocab_file": str(folder / "target_vocab.json"), "separate_vocabs": True}
    tokenizer = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), source_lang="en",
        target_lang="de", **extra,
    )  # fmt: skip
    decoder = len(other) if separate else len(vocabulary)
    config = transformers.MarianConfig(
        vocab_size=len(vocabulary), decoder_vocab_size=decoder, share_encoder_decoder_embeddings=not separate,
        tie_word_embeddings=not separate, pad_token_id=len(vocabulary) - 1, eos_token_id=0,
        decoder_start_token_id=decoder - 1, forced_eos_token_id=0, scale_embedding=True, **SIZES,
    )  # fmt: skip
    return transformers.MarianMTModel(config), tokenizer
