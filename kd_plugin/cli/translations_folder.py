"""What every verb that writes translations offers: a folder, parallel text on request, and a summary in a line."""

import argparse
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

from kd_plugin.corpus.parallel_text import check_text, write_text
from kd_plugin.corpus.translations import Manifest, finished_shard
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import check_outputs, inputs_of
from kd_plugin.files.shards import claim_folder
from kd_plugin.runners.jobs import missing, work


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the translations and their manifest")
    parser.add_argument(
        "--text",
        metavar="PREFIX",
        help="also write PREFIX.SRC and PREFIX.TGT, line by line, as fairseq-preprocess takes them, and PREFIX.scores "
        "(number of the line, from 0, and score)",
    )


def check_output(
    args: argparse.Namespace, languages: Optional[Sequence[str]] = None, identity: Optional[Dict[str, Any]] = None
) -> None:
    """Refuse, before any work, an --output or a --text that cannot be written or would harm something.

    Args:
        languages, identity: of the translations to come; before they are known, what can be told without is checked
    """
    inputs = inputs_of(args)
    check_outputs(inputs, [("--output", args.output)])
    if args.text is not None:
        check_text(args.output, args.text, inputs, languages, None if identity is None else digest_of(identity))


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
            `progress`, writes a shard when it is called with its plan, and `prepare`s the folder for all workers.

    Returns:
        0, the exit status
    """
    folder = Path(args.output)
    check_output(args)
    session = make_session(0)
    identity_sha256 = digest_of(session.identity)
    check_output(args, session.languages, session.identity)

    def done(plan: Any) -> bool:
        return finished_shard(folder, plan.name, identity_sha256) is not None

    mine = range(args.shard_id, len(session.plans), args.num_shards)
    with claim_folder(folder, "--output", identity_sha256, mine) as claim:
        session.prepare()
        plans = work(args, folder, session.plans, done, lambda plan: plan.size, session, make_session, name, "sent")
        shards = [finished_shard(folder, plan.name, identity_sha256) for plan in session.plans]
        if None in shards:
            print(missing(folder, plans, session.plans, done))
            return 0
        whole = [shard for shard in shards if shard is not None]
        manifest = Manifest(session.identity, session.languages, session.input_lines, whole)
        if manifest.lines != session.lines:
            raise KDPluginError(f"{folder}: {manifest.lines} lines were written instead of {session.lines}")
        if not manifest.hypotheses:
            found = [f"{name.replace('_', ' ')} {count:,}" for name, count in manifest.counts.items() if count]
            raise KDPluginError(
                f"{folder}: not one translation of {manifest.lines:,} lines "
                f"({', '.join(found) or 'nothing was counted'}). Remedy: sentences that the model can take"
            )
        manifest.write(folder)
        claim.finish()
    finish_output(manifest, args)
    return 0
