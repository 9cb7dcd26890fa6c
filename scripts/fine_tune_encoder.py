#!/usr/bin/env python3
"""Fine-tune a pretrained encoder with transformers: a Hugging Face teacher for classification or for tagging.

    fine_tune_encoder.py ENCODER TRAIN DEV OUT --task {classification,tagging} [--epochs 3] [--lr 1e-4] …

ENCODER is a folder with a pretrained model and its tokenizer. TRAIN and DEV hold, for classification, a sentence, a tab
and its label in each line; for tagging, a word, a tab and its tag in each line and an empty line after each sentence.
OUT becomes a folder as save_pretrained makes it, with the labels' names, from the epoch that does best on DEV. Needs
transformers; for tagging, seqeval too.
"""

import argparse
import pathlib
import random
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

IGNORED = -100  # PyTorch's target that no loss counts: subwords after a word's first, and padding


class Example(NamedTuple):
    """words: one for classification, the sentence; labels: as many"""

    words: List[str]
    labels: List[str]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name in ("encoder", "train", "dev", "out"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--task", required=True, choices=("classification", "tagging"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="sentences (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-4, help="the highest (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the updates (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--max-length", type=int, default=128, help="subwords (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} already exists: name another folder")
    return args


def read(path: pathlib.Path, task: str) -> List[Example]:
    # Only "\n" ends a line: tweets contain characters that str.splitlines would split at.
    lines = path.read_text(encoding="utf-8").split("\n")
    if task == "classification":
        rows = [line.rpartition("\t") for line in lines if line.strip()]
        return [Example([text], [label]) for text, _, label in rows]
    found, sentence = [], Example([], [])
    for line in [*lines, ""]:
        if line.strip():  # some corpora end a sentence with a line of one tab
            word, _, tag = line.rpartition("\t")
            sentence.words.append(word)
            sentence.labels.append(tag)
        elif sentence.words:
            found.append(sentence)
            sentence = Example([], [])
    return found


def collate(examples: Sequence[Example], tokenizer: Any, ids: Dict[str, int], args: argparse.Namespace) -> Any:
    """The batch as the model takes it: ids and mask B × T, labels B (classification) or B × T (tagging)."""
    tagging = args.task == "tagging"
    texts = [example.words if tagging else example.words[0] for example in examples]
    batch = tokenizer(
        texts,
        is_split_into_words=tagging,
        padding=True,
        truncation=True,
        max_length=args.max_length,
        return_tensors="pt",
    )
    if not tagging:
        batch["labels"] = torch.tensor([ids[example.labels[0]] for example in examples])
        return batch
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for row, example in enumerate(examples):
        seen = {None}
        for column, word in enumerate(batch.word_ids(row)):
            if word not in seen:
                labels[row, column] = ids[example.labels[word]]
                seen.add(word)
    batch["labels"] = labels
    return batch


def batches(examples: List[Example], args: argparse.Namespace, shuffle: random.Random) -> Iterator[List[Example]]:
    """Batches of similar length, in random order."""
    order = sorted(examples, key=lambda example: (sum(map(len, example.words)) // 20, shuffle.random()))
    made = [order[at : at + args.batch_size] for at in range(0, len(order), args.batch_size)]
    shuffle.shuffle(made)
    return iter(made)


@torch.no_grad()
def score(model: Any, examples: List[Example], tokenizer: Any, args: argparse.Namespace) -> float:
    """Accuracy; for tagging, entity F1. Words that the tokenizer drops or truncates count as O."""
    model.eval()
    names, right, predicted = model.config.id2label, 0, []
    for at in range(0, len(examples), 64):
        part = examples[at : at + 64]
        batch = collate(part, tokenizer, model.config.label2id, args)
        labels = batch.pop("labels")
        best = model(**batch).logits.argmax(dim=-1)
        if args.task == "classification":
            right += int((best == labels).sum())
            continue
        for row, example in enumerate(part):
            tags = ["O"] * len(example.words)
            for column in (labels[row] != IGNORED).nonzero().flatten().tolist():
                tags[batch.word_ids(row)[column]] = names[int(best[row, column])]
            predicted.append(tags)
    if args.task == "classification":
        return right / len(examples)
    from seqeval.metrics import f1_score

    return float(f1_score([example.labels for example in examples], predicted))


def main() -> None:
    args = parse()
    transformers.set_seed(args.seed)
    train, dev = (read(path, args.task) for path in (args.train, args.dev))
    names = sorted({label for example in train for label in example.labels})
    ids = {name: index for index, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(str(args.encoder), use_fast=True)
    kind = AutoModelForTokenClassification if args.task == "tagging" else AutoModelForSequenceClassification
    model = kind.from_pretrained(
        str(args.encoder), num_labels=len(names), id2label=dict(enumerate(names)), label2id=ids
    )
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    total = args.epochs * -(-len(train) // args.batch_size)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(args.warmup * total), total)
    shuffle, best, start = random.Random(args.seed), -1.0, time.time()
    for epoch in range(1, args.epochs + 1):
        model.train()
        losses = []
        for examples in batches(train, args, shuffle):
            loss = model(**collate(examples, tokenizer, ids, args)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        result = score(model, dev, tokenizer, args)
        mean = sum(losses) / len(losses)
        print(f"epoch {epoch}: loss {mean:.4f}, dev {result:.4f}, {time.time() - start:.0f} s", flush=True)
        if result > best:
            best = result
            model.save_pretrained(str(args.out))
            tokenizer.save_pretrained(str(args.out))


if __name__ == "__main__":
    main()
