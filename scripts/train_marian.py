#!/usr/bin/env python3
"""Train a small Marian model with transformers' Seq2SeqTrainer: a Hugging Face teacher if none can be downloaded.

    train_marian.py CORPUS OUT [--source en] [--target de] [--vocab 1000] [--updates 900] [--dim 128] …

CORPUS holds train.SRC and train.TGT, a sentence a line, as scripts/quickstart_corpus.py writes them. OUT becomes a
folder as save_pretrained makes it, with both sentencepiece models. Needs transformers, accelerate and sentencepiece.
"""

import argparse
import json
import pathlib
import shutil
from typing import Dict, List

import sentencepiece
import torch
import transformers


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--vocab", type=int, default=1000, help="pieces, of both languages (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=900)
    parser.add_argument("--batch-size", type=int, default=48, help="sentence pairs (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--encoder-layers", type=int, default=3)
    parser.add_argument("--decoder-layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} already exists: name another folder")
    return args


def make_tokenizer(args: argparse.Namespace, texts: List[pathlib.Path]) -> transformers.MarianTokenizer:
    """A Marian tokenizer: one sentencepiece model for both sides, with Marian's ids (padding last)."""
    args.out.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, texts)), model_prefix=str(args.out / "source"), vocab_size=args.vocab,
        character_coverage=1.0, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (args.out / "source.model").rename(args.out / "source.spm")
    (args.out / "source.vocab").unlink()
    shutil.copy(args.out / "source.spm", args.out / "target.spm")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(args.out / "source.spm"))
    pieces = [processor.id_to_piece(index) for index in range(3, processor.get_piece_size())]
    vocabulary = {symbol: at for at, symbol in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (args.out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    files = (str(args.out / name) for name in ("source.spm", "target.spm", "vocab.json"))
    return transformers.MarianTokenizer(*files, source_lang=args.source, target_lang=args.target)


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Token ids of sentence pairs."""

    def __init__(self, tokenizer: transformers.MarianTokenizer, sources: List[str], targets: List[str]):
        self._inputs = tokenizer(sources)["input_ids"]
        self._labels = tokenizer(text_target=targets)["input_ids"]

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Dict[str, List[int]]:
        return {"input_ids": self._inputs[index], "labels": self._labels[index]}


def main() -> None:
    args = parse()
    transformers.set_seed(args.seed)
    texts = [args.corpus / f"train.{language}" for language in (args.source, args.target)]
    tokenizer = make_tokenizer(args, texts)
    sources, targets = (text.read_text(encoding="utf-8").splitlines() for text in texts)
    config = transformers.MarianConfig(
        vocab_size=len(tokenizer), d_model=args.dim, encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=4 * args.dim, decoder_ffn_dim=4 * args.dim, max_position_embeddings=256, dropout=0.0,
        activation_function="relu", scale_embedding=True, pad_token_id=len(tokenizer) - 1, eos_token_id=0,
        decoder_start_token_id=len(tokenizer) - 1, forced_eos_token_id=0,
    )  # fmt: skip
    model = transformers.MarianMTModel(config)
    # Initialised as in fairseq: with the configuration's 0.02 throughout, so short a training learns far less.
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name and "shared" not in name:
            torch.nn.init.xavier_uniform_(parameter)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=args.dim**-0.5)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1].zero_()  # padding: the decoder begins with it, and Marian with zeros
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(args.out / "training"), max_steps=args.updates, per_device_train_batch_size=args.batch_size,
        learning_rate=args.lr, warmup_steps=args.warmup, lr_scheduler_type="linear", weight_decay=0.0, adam_beta2=0.98,
        label_smoothing_factor=args.label_smoothing, max_grad_norm=1.0, group_by_length=True, save_strategy="no",
        report_to=[], logging_steps=max(1, args.updates // 20), seed=args.seed, use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=0,
    )  # fmt: skip
    trainer = transformers.Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=Pairs(tokenizer, sources, targets),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(str(args.out))
    tokenizer.save_pretrained(str(args.out))
    shutil.rmtree(args.out / "training", ignore_errors=True)


if __name__ == "__main__":
    main()
