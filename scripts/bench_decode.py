#!/usr/bin/env python3
"""Measures translation on one CPU thread or GPU: fairseq-generate, as a user runs it, and CTranslate2 on the export.

    bench_decode.py CHECKPOINT DATA_BIN --source RAW.src --reference RAW.tgt [--sentencepiece-model M]
                    [--vocabulary-map-from RAW.src RAW.tgt] [--device cuda] [--rounds N] [--quick] [--out DIR]

All use the same beam, length limits and batch size in sentences, sorted by length. Times cover only the search on both
sides: fairseq-generate's own "Translated … in … s", and translate_batch. Neither includes start-up, subwords or files.
"""

import argparse
import functools
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Callable, Dict, List, NamedTuple, Optional

import sacrebleu
import torch
from benchmarking import CONTESTANT, MILLISECONDS, SPREAD, Column, Progress, Report, Table

from kd_plugin.checkpoints.ctranslate2_models import convert
from kd_plugin.checkpoints.open import Checkpoint, open_checkpoint
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.decoding.base import Settings, Tokens
from kd_plugin.decoding.ctranslate2 import CTranslate2Decoder
from kd_plugin.decoding.models import share_identical
from kd_plugin.export.vocabulary_map import write_vocabulary_map

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "kd_plugin"
FAIRSEQ, INT8_MAP = "fairseq-generate", "int8, vocabulary map"
FAIRSEQ_HALF = f"{FAIRSEQ} --fp16"
# by device: types of the weights of CTranslate2's models
TYPES = {"cpu": ("float32", "int8"), "cuda": ("float32", "float16", "int8_float16")}
COLUMNS = [
    CONTESTANT,
    MILLISECONDS,
    SPREAD,
    Column("times as fast", "speedup", ".2f"),
    Column("identical", "identical", ".1%"),
    Column("BLEU", "bleu", ".2f"),
    Column("bytes", "bytes", ",d"),
    Column("times as small", "smaller", ".2f"),
]


class Answer(NamedTuple):
    """The best translation of each sentence, and the seconds of the search."""

    hypotheses: List[Tokens]
    seconds: float


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="binarised test set, with its dictionaries")
    parser.add_argument("--gen-subset", default="test")
    parser.add_argument("--source", required=True, help="the same sentences raw")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--sentencepiece-model", help="default: symbols are what spaces separate")
    parser.add_argument("--vocabulary-map-from", nargs=2, metavar=("RAW.src", "RAW.tgt"))
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="sentences; default: %(default)s")
    parser.add_argument("--device", choices=sorted(TYPES), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="folder for the report: .md and .json")
    arguments = parser.parse_args()
    arguments.device = torch.device(arguments.device)
    arguments.rounds = 1 if arguments.quick else arguments.rounds
    torch.set_num_threads(1)
    return arguments


def lines(path: str) -> List[str]:
    return [line for _, line in numbered_lines(pathlib.Path(path), "file")]


def generate(arguments: argparse.Namespace, *further: str) -> Answer:
    """fairseq-generate in its own process."""
    command = [
        str(pathlib.Path(sys.executable).parent / "fairseq-generate"), arguments.data, "--user-dir", str(PACKAGE),
        "--task", "translation", "--path", arguments.checkpoint, "--gen-subset", arguments.gen_subset,
        *further, "--beam", str(arguments.beam), "--max-len-a", "0", "--max-len-b", "200", "--num-workers", "0",
        "--batch-size", str(arguments.batch_size), "--required-batch-size-multiple", "1",
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(
        command, env={**os.environ, **threads}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    seconds = re.search(r"Translated [\d,]+ sentences \([\d,]+ tokens\) in ([\d.]+)s", result.stdout)
    if result.returncode != 0 or seconds is None:
        raise SystemExit(f"fairseq-generate failed:\n{result.stdout[-3000:]}")
    found = dict(re.findall(r"^H-(\d+)\t[^\t\n]*\t(.*)$", result.stdout, flags=re.MULTILINE))
    return Answer([found[number].split() for number in sorted(found, key=int)], float(seconds.group(1)))


def translate(decoder: CTranslate2Decoder, sentences: List[Tokens], batch_size: int) -> Answer:
    order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
    hypotheses: List[Tokens] = [[] for _ in sentences]
    seconds = 0.0
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [sentences[place] for place in places]
        begin = time.perf_counter()
        answers = decoder(batch)
        seconds += time.perf_counter() - begin
        for place, answer in zip(places, answers):
            hypotheses[place] = list(answer[0][0])
    return Answer(hypotheses, seconds)


def contestants(
    opened: Checkpoint, folder: pathlib.Path, arguments: argparse.Namespace, subwords: Subwords
) -> Dict[str, Callable[[], Answer]]:
    sentences = [subwords.encode(line) for line in lines(arguments.source)]
    settings = Settings(beam=arguments.beam)
    device = arguments.device.type
    if device == "cuda":
        found: Dict[str, Callable[[], Answer]] = {
            FAIRSEQ: lambda: generate(arguments),
            FAIRSEQ_HALF: lambda: generate(arguments, "--fp16"),
        }
    else:
        found = {FAIRSEQ: lambda: generate(arguments, "--cpu")}
    wanted: Dict[str, Optional[pathlib.Path]] = {f"CTranslate2 {kind}": None for kind in TYPES[device]}
    if arguments.vocabulary_map_from:
        wanted[INT8_MAP] = folder / "vmap.txt"
        corpus = [map(subwords.encode, lines(path)) for path in arguments.vocabulary_map_from]
        write_vocabulary_map(folder / "vmap.txt", zip(*corpus), *(d.symbols for d in opened.dictionaries))
    for name, vocabulary_map in wanted.items():
        quantization = "int8" if name == INT8_MAP else name.split()[-1]
        model = convert(opened, folder / name, quantization, vocabulary_map)
        decoder = CTranslate2Decoder(model, settings, device, threads=1)
        decoder.use_vocabulary_map = vocabulary_map is not None
        found[name] = functools.partial(translate, decoder, sentences, arguments.batch_size)
    return found


def main() -> None:
    arguments = parse()
    report = Report(
        "bench_decode",
        arguments,
        "how fast CTranslate2 translates compared with fairseq-generate, and what that means for size and quality.",
    )
    subwords = Subwords(arguments.sentencepiece_model, "none")
    references = lines(arguments.reference)
    opened = open_checkpoint(arguments.checkpoint, {"data": arguments.data})
    # as the checkpoint would be with its weights alone, in float32
    weights = 4 * opened.parameters
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        runs = contestants(opened, folder, arguments, subwords)
        seconds: Dict[str, List[float]] = {name: [] for name in runs}
        answers: Dict[str, Answer] = {}
        progress = Progress(arguments.rounds * len(runs))
        for number in range(arguments.rounds):
            names = list(runs)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                progress.step(name)
                answers[name] = runs[name]()
                if len(answers[name].hypotheses) != len(references):
                    raise SystemExit(f"{name}: {len(answers[name].hypotheses)} translations of {len(references)}")
                seconds[name].append(answers[name].seconds)
        progress.close()
        place = "one GPU" if arguments.device.type == "cuda" else "one CPU thread"
        notes = [
            f"{len(references)} sentences, beam {arguments.beam}, at most 200 target tokens, batches of "
            f"{arguments.batch_size}, {place} each; seconds of the search alone.",
            f"Bytes: {FAIRSEQ}: the {opened.parameters:,} parameters in float32, nothing else; the others: model.bin.",
            "Identical: the share of fairseq-generate's translations, symbol by symbol.",
        ]
        table = Table(f"Translating on {place}", COLUMNS, notes)
        for name in runs:
            size = weights if name.startswith(FAIRSEQ) else (folder / name / "model.bin").stat().st_size
            texts = [subwords.decode(tokens) for tokens in answers[name].hypotheses]
            values = {
                "seconds": statistics.median(seconds[name]),
                "lowest": min(seconds[name]),
                "highest": max(seconds[name]),
                "rounds": len(seconds[name]),
                "speedup": statistics.median(a / b for a, b in zip(seconds[FAIRSEQ], seconds[name])),
                "identical": share_identical(answers[name].hypotheses, answers[FAIRSEQ].hypotheses),
                "bleu": sacrebleu.corpus_bleu(texts, [references]).score,
                "bytes": size,
                "smaller": weights / size,
            }
            table.add(pathlib.Path(arguments.checkpoint).name, name, values)
        report.add(table)
        report.finish()


if __name__ == "__main__":
    main()
