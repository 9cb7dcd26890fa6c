"""The work of `kd-plugin distill`: checks, the plan, and Snakemake, which executes it."""

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

import yaml

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, make_folder, write_atomically, write_json
from kd_plugin.files.locks import LOCK, Claim
from kd_plugin.files.protection import check_outputs
from kd_plugin.files.yaml_text import wrong
from kd_plugin.pipeline.config import Flags, read_pipeline
from kd_plugin.pipeline.plan import SHAPE, as_json, steps_of
from kd_plugin.pipeline.schema import Pipeline
from kd_plugin.pipeline.step import PLAN, state_of
from kd_plugin.pipeline.teaching import Step
from kd_plugin.runners.fairseq_train import PLUGIN, parse

SNAKEFILE = Path(__file__).with_name("Snakefile")
LOG = "logs/snakemake.log"
OWNED = (LOCK, PLAN, "distill.yaml", "done", "logs", "times", ".snakemake")
PATIENCE = 20.0  # seconds for stopped steps to end


class Options(NamedTuple):
    """The command's options. profile: a folder with Snakemake's settings for a cluster"""

    config: str
    cores: int
    profile: Optional[str]
    dry_run: bool
    print_config: bool


# (words after `kd-plugin`) raises KDPluginError if its parser refuses them
Check = Callable[[Sequence[str]], None]


def distill(options: Options, flags: Flags, check: Check) -> str:
    """
    Args:
        flags, check: what the verbs take, from their parsers, which are above this package

    Returns:
        what to print

    Raises:
        KDPluginError: the file is wrong, the folder is somebody else's, or a step fails
    """
    pipeline = read_pipeline(options.config, flags)
    steps = steps_of(pipeline)
    _check_commands(pipeline, steps, check)
    if options.print_config:
        return yaml.safe_dump(_plain(pipeline.content), sort_keys=False, allow_unicode=True).rstrip("\n")
    if importlib.util.find_spec("snakemake") is None:
        raise KDPluginError("distill: Snakemake is not installed. Remedy: pip install 'kd-plugin[pipeline]'")
    if options.profile and not os.path.isdir(options.profile):
        raise KDPluginError(f"--profile {options.profile}: is no folder. Remedy: a folder with Snakemake's config.yaml")
    cores = options.cores or len(os.sched_getaffinity(0))
    output = Path(pipeline.output)
    read = [path for step in steps for path in step.reads]
    check_outputs([("CONFIG", options.config), ("CONFIG", read)], folders=[("output", output)])
    plan = as_json(steps, pipeline.threads or cores, pipeline.workers)
    if options.dry_run:
        return _dry_run(options, output, plan, cores)
    make_folder(output, "output")
    with Claim(
        output / LOCK, f"output {output}", digest_of("kd_plugin distill"), lambda begun: _check_ours(output, steps)
    ):
        for name in ("done", "logs"):
            (output / name).mkdir(exist_ok=True)
        write_atomically(output / "distill.yaml", yaml.safe_dump(_plain(pipeline.content), sort_keys=False).encode())
        with _alone(output) as held:
            write_json(output / PLAN, plan)
            for step in steps:  # one whose product has gone is made again
                if not (output / step.product).exists():
                    (output / "done" / step.name).unlink(missing_ok=True)
            status = _snakemake(options, output, cores, held)
        if status:
            raise _failure(output, steps)
    report = output / steps[-1].product
    return f"{report}" if steps[-1].name == "report" else f"{output}: done"


def _check_commands(pipeline: Pipeline, steps: Sequence[Step], check: Check) -> None:
    lines = getattr(pipeline.content, "lines", {})
    for step in steps:
        at = pipeline.path + (f", line {lines[step.section]}" if step.section in lines else "")
        for words in step.commands:
            if words[0] == "fairseq-train":
                parse(f"{at}, {step.name}", [word for word in words[1:] if word != SHAPE])
            elif words[0] == "kd-plugin":
                try:
                    check(words[1:])
                except KDPluginError as error:
                    what, _, remedy = str(error).partition(" Remedy: ")
                    raise wrong(
                        at, f"`{step.section}`: {what.rstrip('.')}", remedy or "a value that it takes"
                    ) from error


def _check_ours(output: Path, steps: Sequence[Step]) -> None:
    """Refuses a folder with something that no distillation has made there."""
    known = {LOCK, *OWNED} if (output / PLAN).exists() else {LOCK}
    made = {path.stem for path in (output / "done").glob("*.json")} if len(known) > 1 else set()
    products = {step.product: step.name for step in steps}
    for path in sorted(output.iterdir()):
        name = products.get(path.name, path.name)
        if path.name not in known and (name not in made and (path.name in products or not made)):
            raise KDPluginError(
                f"output: {output} has a {path.name}, which no distillation made. Remedy: another folder"
            )


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[int]:
    """Waits for the steps of a run that was killed: they hold this lock as long as they run."""
    with open(output / "done/.running", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"distill: steps of a killed run are still running in {output}: waiting for them", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _command(options: Options, folder: Path, plan: Path, cores: int) -> List[str]:
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(folder), "--nolock"]
    words += ["--rerun-incomplete", "--rerun-triggers", "params", "mtime", "input"]
    words += ["--profile", os.path.abspath(options.profile)] if options.profile else ["--cores", str(cores)]
    return [*words, "--config", f"plan={plan.absolute()}", f"root={Path(PLUGIN).parent}"]


def _snakemake(options: Options, output: Path, cores: int, held: int) -> int:
    """Its exit status. Steps write to our standard output; what Snakemake says goes to a log, or to us."""
    with open(output / LOG, "ab") as log:
        process = subprocess.Popen(
            _command(options, output.absolute(), output / PLAN, cores),
            stderr=None if options.profile else log,
            stdin=subprocess.DEVNULL,
            pass_fds=[held],
            start_new_session=True,  # Ctrl-C reaches us, and we stop the steps in order
        )
        try:
            return process.wait()
        except BaseException:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                    break
            raise


def _failure(output: Path, steps: Sequence[Step]) -> KDPluginError:
    for step in steps:
        error = state_of(step.name, output).get("error")
        if error:
            log = output / "logs" / f"{step.name}.log"
            remedy = (
                "Then the same command continues"
                if "Remedy: " in error
                else "Remedy: mend it; the same command continues"
            )
            return KDPluginError(f"{step.name} ({log}): {error.rstrip('.')}. {remedy}")
    lines = (output / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "no reason")
    return KDPluginError(
        f"distill: Snakemake: {said} ({output / LOG}). Remedy: mend it. The same command then continues"
    )


def _dry_run(options: Options, output: Path, plan: Dict[str, Any], cores: int) -> str:
    """The steps as a table, and why each would run, by Snakemake's own dry run."""
    with tempfile.TemporaryDirectory() as temporary:
        file, place = Path(temporary) / PLAN, output if (output / PLAN).exists() else Path(temporary)
        file.write_text(json.dumps(plan), encoding="utf-8")
        done = subprocess.run(
            [*_command(options, place.absolute(), file, cores), "--dry-run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
    if done.returncode:
        raise KDPluginError(f"distill: Snakemake: {' '.join(done.stdout.split())[-500:]}. Remedy: mend the profile")
    reasons = _reasons(done.stdout)
    lines = ["| step | why it would run | command |", "|---|---|---|"]
    for name, step in plan["steps"].items():
        missing = place == output and not (output / step["product"]).exists()
        why = "its product is missing" if missing and name not in reasons else reasons.get(name, "no: done before")
        commands = " && ".join(map(shlex.join, step["commands"]))
        lines.append(f"| {name} | {why} | `{commands}` |")
    return "\n".join(lines)


def _reasons(said: str) -> Dict[str, str]:
    """Of a dry run's jobs, by step."""
    reasons: Dict[str, str] = {}
    name = ""
    for line in said.splitlines():
        rule = re.match(r"(?:local)?rule (\S+):$", line)
        name = rule.group(1) if rule else name
        found = re.match(r"    reason: (.+)$", line)
        if found and name:
            reason = re.split(r"; ", found.group(1))[0]
            reasons[name] = "not done yet" if reason.startswith("Missing output") else reason.replace("done/", "")
    return reasons


def _plain(value: Any) -> Any:
    """Without our own kinds of mappings, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
