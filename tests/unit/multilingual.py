"""Small multilingual data, and fairseq's flags for them."""

import torch
from fairseq.data import indexed_dataset

WORDS = [f"word{i}" for i in range(24)]
DATA = {  # sentences of unequal lengths, as ids
    "de-en": [([4, 5, 6], [7, 8]), ([14], [15]), ([16, 17], [18, 19, 20])],
    "fr-en": [([9], [10, 11, 12, 13]), ([20, 21, 22, 23], [24])],
    "en-fr": [([25, 26], [27, 4]), ([5], [6, 7])],
}


def write(folder, pairs=DATA, splits=("train",), times=1):
    """A data-bin per pair in one folder, with the same dictionary for all languages."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in ("de", "fr", "en"):
        (folder / f"dict.{language}.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
    for split in splits:
        for pair, sentences in pairs.items():
            for side, language in enumerate(pair.split("-")):
                prefix = folder / f"{split}.{pair}.{language}"
                builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(WORDS) + 4)
                for sentence in sentences * times:
                    builder.add_item(torch.tensor([*sentence[side], 2], dtype=torch.int32))
                builder.finalize(f"{prefix}.idx")
    return folder


def flags(*more):
    """Of translation_multi_simple_epoch."""
    return ["--langs", "de,en,fr", "--lang-pairs", ",".join(DATA), "--sampling-method", "concat", *more]
