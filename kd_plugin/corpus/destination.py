"""Where a verb writes translations: a folder, parallel text on request, and a one-line summary."""

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from kd_plugin.corpus.parallel_text import check_text, write_text
from kd_plugin.corpus.translations import Manifest, Shard, TranslationsFolder
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import Named, check_outputs
from kd_plugin.runners.jobs import Job, Session, claim_share, fill


class Destination(NamedTuple):
    """--output, --text, and all inputs of the verb, by flag."""

    output: str
    text: Optional[str]
    inputs: List[Named]

    def check(self, languages: Optional[Sequence[str]] = None, identity: Optional[Dict[str, Any]] = None) -> None:
        """Refuses, before any work, an --output or --text that cannot be written or would destroy something.

        Args:
            languages, identity: of the new translations; None, while they are unknown, checks only the rest
        """
        check_outputs(self.inputs, [("--output", self.output)])
        if self.text is not None:
            check_text(
                self.output, self.text, self.inputs, languages, None if identity is None else digest_of(identity)
            )

    def finish(self, manifest: Manifest) -> None:
        """Writes the text, if --text asks for it, and prints the summary."""
        if self.text:
            write_text(Path(self.output), self.text)
        counts = _counted(manifest)
        print(
            f"{self.output}: {manifest.lines:,} of {manifest.input_lines:,} lines; {manifest.hypotheses:,} "
            f"translations of {manifest.records:,} distinct sources"
            + (f" ({counts})" if counts else "")
            + (f"; text in {self.text}.{{{','.join(manifest.languages)},scores}}" if self.text else "")
        )


class TranslationSession(Session):
    """A session that writes translations.

    identity, languages, input_lines: as in Manifest. lines: the expected number of output lines. output: the folder.
    """

    output: Path
    identity: Dict[str, Any]
    languages: List[str]
    input_lines: int
    lines: int

    def summary(self) -> str:
        """One line about this process's work; empty: nothing to report."""
        return ""

    @property
    def folder(self) -> TranslationsFolder:
        return TranslationsFolder(self.output, digest_of(self.identity))


def run_session(
    to: Destination, job: Job, name: str, make_session: Callable[[int], TranslationSession]
) -> Optional[Manifest]:
    """Writes this job's shards of a folder of translations; the job that writes the last one also writes the manifest.

    Args:
        name: for the progress bar
        make_session: takes the worker's number; must be picklable

    Returns:
        the manifest; None: other jobs have not finished yet
    """
    to.check()
    session = make_session(0)
    to.check(session.languages, session.identity)
    folder = session.folder

    def conclude(shards: List[Shard]) -> Manifest:
        manifest = Manifest(session.identity, session.languages, session.input_lines, shards)
        if manifest.lines != session.lines:
            raise KDPluginError(f"{folder.path}: {manifest.lines} lines were written instead of {session.lines}")
        if not manifest.hypotheses:
            found = _counted(manifest) or "nothing was counted"
            raise KDPluginError(
                f"{folder.path}: no translation for any of {manifest.lines:,} lines ({found}). Remedy: sentences that "
                "the model accepts"
            )
        manifest.write(folder.path)
        return manifest

    with claim_share(folder, "--output", job, session) as claim:
        manifest = fill(folder, claim, job, session, make_session, conclude, name, "sent")
    if session.summary():
        print(session.summary())
    if manifest is not None:
        to.finish(manifest)
    return manifest


def _counted(manifest: Manifest) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in manifest.counts.items() if count)
