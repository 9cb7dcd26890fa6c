"""What every verb that writes translations offers: a folder, parallel text on request, and a summary in a line."""

import argparse
import os
import uuid
from pathlib import Path
from typing import Any, Callable, List

from kd_plugin.errors import KDPluginError
from kd_plugin.files import digest_of, make_folder
from kd_plugin.pipeline.jobs import missing, work
from kd_plugin.pipeline.progress import progress
from kd_plugin.pipeline.translations import Manifest, Translations, finished_shard


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the translations and their manifest")
    parser.add_argument(
        "--text",
        metavar="PREFIX",
        help="also write PREFIX.SRC and PREFIX.TGT, line by line, as fairseq-preprocess takes them, and PREFIX.scores "
        "(number of the line, from 0, and score)",
    )


def finish_output(manifest: Manifest, args: argparse.Namespace) -> None:
    """The text, where --text asks for it, and the summary."""
    if args.text:
        write_text(Path(args.output), args.text)
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in manifest.counts.items() if count)
    print(
        f"{args.output}: {manifest.lines:,} of {manifest.input_lines:,} lines; {manifest.hypotheses:,} translations of "
        f"{manifest.records:,} different sources"
        + (f" ({counts})" if counts else "")
        + (f"; text in {args.text}.{{{','.join(manifest.languages)},scores}}" if args.text else "")
    )


def run_session(args: argparse.Namespace, name: str, make_session: Callable[[int], Any]) -> int:
    """Write this job's shards of a folder of translations; whoever writes the last one writes the manifest too.

    Args:
        name: for the progress bar
        make_session: of a worker's number; can be pickled. A session has `identity`, `languages`, `input_lines` (as
            Manifest's), `lines` (how many have to come out), `plans` (of all shards, each with `name` and `size`) and
            `progress`, and writes a shard when it is called with its plan.

    Returns:
        0, the exit status
    """
    folder = Path(args.output)
    make_folder(folder, "--output")
    session = make_session(0)
    identity_sha256 = digest_of(session.identity)

    def done(plan: Any) -> bool:
        return finished_shard(folder, plan.name, identity_sha256) is not None

    mine = work(args, folder, session.plans, done, lambda plan: plan.size, session, make_session, name, "sent")
    shards = [finished_shard(folder, plan.name, identity_sha256) for plan in session.plans]
    if None in shards:
        print(missing(folder, mine, session.plans, done))
        return 0
    whole = [shard for shard in shards if shard is not None]
    manifest = Manifest(session.identity, session.languages, session.input_lines, whole)
    if manifest.lines != session.lines:
        raise KDPluginError(f"{folder}: {manifest.lines} lines were written instead of {session.lines}")
    if not manifest.hypotheses:
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in manifest.counts.items() if count)
        raise KDPluginError(
            f"{folder}: not one translation of {manifest.lines:,} lines ({counts or 'nothing was counted'}). Remedy: "
            "sentences that the model can take"
        )
    manifest.write(folder)
    finish_output(manifest, args)
    return 0


def write_text(folder: Path, prefix: str) -> List[Path]:
    """Parallel text in the order of the corpus: a line for each translation of each line; lines without are left out.

    Raises:
        KDPluginError: damaged translations, or the files cannot be written; none of them is then there
    """
    translations = Translations(folder)
    paths = [Path(f"{prefix}.{end}") for end in (*translations.manifest.languages, "scores")]
    if len(set(paths)) < len(paths):
        raise KDPluginError(f"--text {prefix}: two files of the name {paths[0]}. Remedy: other names of the languages")
    temporary = [path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp") for path in paths]
    placed: List[Path] = []
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        files = [open(path, "w", encoding="utf-8", newline="\n") for path in temporary]
        try:
            for line, record in progress(translations.lines(), translations.manifest.lines, "text"):
                for hypothesis in record.hypotheses:
                    score = "" if hypothesis.score is None else f"{hypothesis.score:.6g}"
                    for file, text in zip(files, (record.source, hypothesis.text, f"{line}\t{score}")):
                        file.write(text + "\n")
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files:
                file.close()
        for path, written in zip(paths, temporary):
            os.replace(written, path)
            placed.append(path)
    except OSError as error:
        for path in placed:
            path.unlink(missing_ok=True)
        raise KDPluginError(
            f"--text {prefix}: {error.strerror or error}. Remedy: make room, or another folder"
        ) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return paths
