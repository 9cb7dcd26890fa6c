"""Where a verb writes translations: a folder, parallel text on request, and a summary in a line."""

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from kd_plugin.corpus.parallel_text import check_text, write_text
from kd_plugin.corpus.translations import Manifest, finished_shard
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import Named, check_outputs
from kd_plugin.files.shards import claim_folder
from kd_plugin.runners.jobs import Job, missing, work


class Destination(NamedTuple):
    """--output, --text, and all that the verb reads, by its flags."""

    output: str
    text: Optional[str]
    inputs: List[Named]

    def check(self, languages: Optional[Sequence[str]] = None, identity: Optional[Dict[str, Any]] = None) -> None:
        """Refuse, before any work, an --output or a --text that cannot be written or would harm something.

        Args:
            languages, identity: of the translations to come; before they are known, what can be told without is checked
        """
        check_outputs(self.inputs, [("--output", self.output)])
        if self.text is not None:
            check_text(
                self.output, self.text, self.inputs, languages, None if identity is None else digest_of(identity)
            )

    def finish(self, manifest: Manifest) -> None:
        """The text, where --text asks for it, and the summary."""
        if self.text:
            write_text(Path(self.output), self.text)
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in manifest.counts.items() if count)
        print(
            f"{self.output}: {manifest.lines:,} of {manifest.input_lines:,} lines; {manifest.hypotheses:,} "
            f"translations of {manifest.records:,} different sources"
            + (f" ({counts})" if counts else "")
            + (f"; text in {self.text}.{{{','.join(manifest.languages)},scores}}" if self.text else "")
        )


def run_session(to: Destination, job: Job, name: str, make_session: Callable[[int], Any]) -> None:
    """Write this job's shards of a folder of translations; whoever writes the last one writes the manifest too.

    Args:
        name: for the progress bar
        make_session: of a worker's number; can be pickled. A session has `identity`, `languages`, `input_lines` (as
            Manifest's), `lines` (how many have to come out), `plans` (of all shards, each with `name` and `size`) and
            `progress`, writes a shard when it is called with its plan, and `prepare`s the folder for all workers.
    """
    folder = Path(to.output)
    to.check()
    session = make_session(0)
    identity_sha256 = digest_of(session.identity)
    to.check(session.languages, session.identity)

    def done(plan: Any) -> bool:
        return finished_shard(folder, plan.name, identity_sha256) is not None

    mine = job.mine(len(session.plans))
    with claim_folder(folder, "--output", identity_sha256, mine) as claim:
        session.prepare()
        plans = work(job, folder, session.plans, done, lambda plan: plan.size, session, make_session, name, "sent")
        shards = [finished_shard(folder, plan.name, identity_sha256) for plan in session.plans]
        if None in shards:
            print(missing(folder, plans, session.plans, done))
            return
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
    to.finish(manifest)
