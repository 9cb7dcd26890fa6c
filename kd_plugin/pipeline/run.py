"""The work of `kd-plugin distill`: checks, the plan, and Snakemake, which executes it."""

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import yaml

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, make_folder, write_atomically, write_json
from kd_plugin.files.locks import LOCK, Claim, begun
from kd_plugin.files.protection import check_outputs
from kd_plugin.files.yaml_text import wrong
from kd_plugin.pipeline.checkpoints import value_of
from kd_plugin.pipeline.config import Flags, read_pipeline
from kd_plugin.pipeline.plan import SHAPE, as_json, place_of, steps_of
from kd_plugin.pipeline.schema import Pipeline
from kd_plugin.pipeline.step import PLAN, job_of, state_of
from kd_plugin.pipeline.teaching import Step
from kd_plugin.runners.fairseq_train import PLUGIN, inputs_in, parse

SNAKEFILE = Path(__file__).with_name("Snakefile")
LOG = "logs/snakemake.log"
OWNED = (LOCK, PLAN, "distill.yaml", "done", "logs", "times", ".snakemake")
JOB = digest_of("kd_plugin distill")  # any distillation may go on in the folder of another
FULL = 1 << 16  # bytes: too few for what a step and Snakemake write
PATIENCE = 20.0  # seconds for stopped steps to end


class Options(NamedTuple):
    """The command's options. profile: a folder with Snakemake's settings for a cluster"""

    config: str
    cores: int
    profile: Optional[str]
    dry_run: bool
    print_config: bool


# (words after `kd-plugin`) -> flags and paths of what it reads; raises KDPluginError if its parser refuses them
Check = Callable[[Sequence[str]], List[Tuple[str, str]]]


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
    _check_inputs(output, steps)
    plan = {**as_json(steps, pipeline.threads or cores, pipeline.workers), "root": str(Path(PLUGIN).parent)}
    if options.dry_run:
        if output.is_dir():
            _check_ours(output, steps, begun(output / LOCK, JOB))
        return _dry_run(options, output, steps, plan, cores)
    make_folder(output, "output")
    with Claim(output / LOCK, f"output {output}", JOB, lambda begun: _check_ours(output, steps, begun)):
        for name in ("done", "logs"):
            (output / name).mkdir(exist_ok=True)
        write_atomically(output / "distill.yaml", yaml.safe_dump(_plain(pipeline.content), sort_keys=False).encode())
        with _alone(output) as held:
            write_json(output / PLAN, plan)
            for name in _changed(output, steps):
                (output / "done" / name).unlink(missing_ok=True)
            for step in steps:
                state = state_of(step.name, output)
                if state.get("error"):  # of an earlier run
                    write_json(output / "done" / f"{step.name}.json", {**state, "error": ""})
            status = _snakemake(options, output, cores, held)
        if status:
            raise _failure(output, steps, status)
    report = output / steps[-1].product
    return f"{report}" if steps[-1].name == "report" else f"{output}: done"


def _check_commands(pipeline: Pipeline, steps: Sequence[Step], check: Check) -> None:
    made = {*(step.product for step in steps), *OWNED}
    for step in steps:
        at = place_of(pipeline, step.section)
        for words in step.commands:
            files: Sequence[Tuple[str, str]] = []
            if words[0] == "fairseq-train":
                place = f"{at}, {step.name}"
                args = parse(place, [word for word in words[1:] if word != SHAPE])[1]
                _check_average(place, step.commands, args)
                files = inputs_in(args)
            elif words[0] == "kd-plugin":
                try:
                    files = check(words[1:])
                except KDPluginError as error:
                    what, _, remedy = str(error).partition(" Remedy: ")
                    raise wrong(
                        at, f"`{step.section}`: {what.rstrip('.')}", remedy or "a value that it takes"
                    ) from error
            for flag, path in files:
                if Path(path).parts[:1] in [(name,) for name in made] or (os.path.isabs(path) and os.path.exists(path)):
                    continue
                remedy = f"./{path}" if os.path.exists(path) else "an existing file or folder"
                raise wrong(at, f"`{step.section}`: {flag} {path} is not found", remedy)


def _check_average(at: str, commands: Sequence[Sequence[str]], args: argparse.Namespace) -> None:
    """Refuses to average more checkpoints than the training saves."""
    for words in commands:
        number, every = int(value_of(words, "--last") or 0), int(value_of(words, "--every") or 0)
        longest, unit = (args.max_update, "update") if every else (args.max_epoch, "epoch")
        if 0 < longest < number * (every or 1):
            what = f"`average: {number}` with `every: {every}`" if every else f"`average: {number}` epochs"
            raise wrong(at, f"{what}, but --max-{unit} {longest}", "a longer training, or an average of fewer")


def _check_inputs(output: Path, steps: Sequence[Step]) -> None:
    """Refuses to read what a step would write over."""
    made = {*(step.product for step in steps), *OWNED}
    for step in steps:
        for path in step.reads:
            with contextlib.suppress(ValueError):
                place = Path(os.path.realpath(path)).relative_to(os.path.realpath(output))
                if place.parts[0] in made:
                    raise KDPluginError(
                        f"output: {output} would overwrite {path}, which the step {step.name} reads. "
                        "Remedy: another folder"
                    )


def _changed(output: Path, steps: Sequence[Step]) -> Dict[str, str]:
    """Steps that are done, but whose product has gone or is of another job; and why. Also if a file is older than its
    predecessor, which Snakemake would not notice."""
    changed: Dict[str, str] = {}
    jobs: Dict[str, str] = {}
    for step in steps:
        jobs[step.name] = job_of(step._asdict(), [jobs[name] for name in step.after])
        done = output / "done" / step.name
        if not (output / step.product).exists():
            changed[step.name] = "its product is missing"
        elif done.exists() and done.read_text(encoding="utf-8") != jobs[step.name]:
            before = [name for name in step.after if name in changed]
            changed[step.name] = f"after {before[0]}" if before else "its command or a file that it reads has changed"
    return changed


def _check_ours(output: Path, steps: Sequence[Step], begun: bool) -> None:
    """Refuses a folder with something that no distillation has made there."""
    made = {path.stem for path in (output / "done").glob("*.json")} if begun else set()
    products = {step.product: step.name for step in steps}
    for path in sorted(output.iterdir()):
        ours = products[path.name] in made if path.name in products else begun or path.name == LOCK
        if not ours:
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
    # Snakemake reads values as YAML, where # may begin a comment
    return words if plan == folder / PLAN else [*words, "--config", f"plan={json.dumps(str(plan))}"]


def _environment() -> Dict[str, str]:
    """Steps run in another folder."""
    relative = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if os.environ.get(name)}
    absolute = {
        name: os.pathsep.join(os.path.abspath(part) if part else "" for part in value.split(os.pathsep))
        for name, value in relative.items()
    }
    return {**os.environ, **absolute}


def _snakemake(options: Options, output: Path, cores: int, held: int) -> int:
    """Its exit status. Steps write to our standard output; what Snakemake says goes to a log, or to us."""
    with open(output / LOG, "ab") as log:
        process = subprocess.Popen(
            _command(options, output.absolute(), output.absolute() / PLAN, cores),
            env=_environment(),
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


def _failure(output: Path, steps: Sequence[Step], status: int) -> KDPluginError:
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
    if status < 0:
        said = f"{signal.Signals(-status).name} ended it"
    if shutil.disk_usage(output).free < FULL:  # then no step could say so
        return KDPluginError(f"output {output}: no space is left. Remedy: free some; the same command then continues")
    return KDPluginError(
        f"distill: Snakemake: {said} ({output / LOG}). Remedy: mend it. The same command then continues"
    )


def _dry_run(options: Options, output: Path, steps: Sequence[Step], plan: Dict[str, Any], cores: int) -> str:
    """The steps as a table, and why each would run, by Snakemake's own dry run."""
    with tempfile.TemporaryDirectory() as temporary:
        file, place = Path(temporary) / PLAN, output if (output / PLAN).exists() else Path(temporary)
        file.write_text(json.dumps(plan), encoding="utf-8")
        done = subprocess.run(
            [*_command(options, place.absolute(), file, cores), "--dry-run"],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
    if done.returncode:
        raise KDPluginError(f"distill: Snakemake: {' '.join(done.stdout.split())[-500:]}. Remedy: mend the profile")
    reasons = {**_changed(output, steps), **_reasons(done.stdout)}
    lines = ["| step | why it would run | command |", "|---|---|---|"]
    for name, step in plan["steps"].items():
        why = reasons.get(name, "no: done before")
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
