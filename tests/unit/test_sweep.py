"""kd-plugin sweep with a planted objective: a stand-in for fairseq-train that logs a known function of its flags."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from kd_plugin.errors import KDPluginError
from kd_plugin.sweep.config import Halving, Range, read_sweep
from tests.support import ROOT, start

pytest.importorskip("optuna")

# alpha 0.3 and temperature 2 are best; it converges over the updates, so that halving can judge early
STAND_IN = """import json, math, os, sys, time
args = sys.argv[1:]
value = lambda flag, default: args[len(args) - args[::-1].index(flag)] if flag in args else default
alpha, tau = float(value("--kd-alpha", "0.5")), float(value("--kd-temperature", "1"))
total, each = int(value("--max-update", "100")), int(value("--validate-interval-updates", "10"))
folder = value("--save-dir", "")
os.makedirs(folder, exist_ok=True)
open(os.path.join(folder, "started"), "a").write("x")
assert "--user-dir" in args and "--boom" not in args
if alpha > 0.95:
    sys.exit("planted failure")
last = os.path.join(folder, "last")
done = int(open(last).read()) if os.path.exists(last) else 0
floor = 2 + 4 * (alpha - 0.3) ** 2 + math.log2(tau / 2) ** 2 + 0.001 * int(value("--seed", "1"))
for update in range(done + each, total + 1, each):
    while update > 30 and "/0001/" in folder and os.path.exists({hold!r}):
        time.sleep(0.01)
    loss = float("nan") if alpha < 0.02 else floor + 3 / update
    print(json.dumps({{"epoch": 1, "valid_nll_loss": str(loss), "valid_num_updates": str(update)}}), flush=True)
    print("2026-01-01 | INFO | valid | " + json.dumps({{"epoch": 1, "valid_nll_loss": str(loss), "valid_num_updates":
          str(update), "valid_wall": str(update / 10)}}), flush=True)
    open(last + ".new", "w").write(str(update))
    os.replace(last + ".new", last)
print("2026-01-01 | INFO | fairseq_cli.train | done training in 1.0 seconds")
"""

CONFIG = """
train: data-bin --arch transformer --optimizer adam --task distillation_translation --teacher-path t.pt
  --criterion kd_label_smoothed_cross_entropy --kd-alpha 0.5
parameters:
  --kd-alpha: {low: 0.02, high: 0.95}
  --kd-temperature: {low: 0.5, high: 8, log: true}
trials: 16
updates: 90
validate: 30
"""
PARAMETERS = CONFIG[CONFIG.index("parameters:") : CONFIG.index("trials:")]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs a sweep of a file's text with the stand-in."""
    from kd_plugin.sweep import sweep as module
    from kd_plugin.sweep import training

    stand_in(tmp_path, monkeypatch)
    monkeypatch.setattr(training, "WAIT", 0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data-bin").mkdir(exist_ok=True)
    (tmp_path / "t.pt").touch()

    def run(text=CONFIG, output="out", workers=1, dry_run=False, devices=None):
        (tmp_path / "sweep.yaml").write_text(text)
        path = str(tmp_path / "sweep.yaml")
        options = module.Options(path, str(tmp_path / output), workers, devices, dry_run, [("CONFIG.yaml", path)])
        said = module.sweep(options)
        return said, json.loads((tmp_path / output / "sweep.json").read_text()) if not dry_run else None

    return run


def stand_in(folder, monkeypatch):
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "stand_in.py").write_text(STAND_IN.format(hold=str(folder / "hold")))
    program = folder / "bin" / "fairseq-train"
    program.write_text(f"""#!/bin/sh\nexec '{sys.executable}' -S '{folder / "stand_in.py"}' "$@"\n""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


def values(trial):
    return trial["values"]["--kd-alpha"], trial["values"]["--kd-temperature"]


def floor(alpha, tau, seed=1):
    return 2 + 4 * (alpha - 0.3) ** 2 + math.log2(tau / 2) ** 2 + 0.001 * seed


def test_a_planted_optimum_is_found_and_confirmed_by_other_seeds(sweep, tmp_path):
    said, found = sweep()
    assert len(found["trials"]) == 16 and {trial["state"] for trial in found["trials"]} == {"done"}
    given = next(trial for trial in found["trials"] if trial["given"])
    assert given["trial"] == 0 and values(given) == (0.5, 1.0)  # the command's own alpha, fairseq's default temperature
    assert given["value"] == pytest.approx(floor(0.5, 1) + 3 / 90)
    alpha, tau = values(found["trials"][0])
    assert abs(alpha - 0.3) < 0.25 and 1.3 < tau < 3
    for trial in found["trials"]:
        assert trial["value"] == pytest.approx(floor(*values(trial)) + 3 / 90, abs=1e-5)
        assert trial["updates"] == 90 and trial["seconds"] == 9.0
    as_given, best = found["retrained"]
    assert best["scores"]["1"] == found["trials"][0]["value"]  # not trained again with the seed that it had
    assert best["mean"] == pytest.approx(floor(alpha, tau, 2) + 3 / 90, abs=1e-5)
    assert as_given["mean"] == pytest.approx(floor(0.5, 1, 2) + 3 / 90)
    assert "in 3 of 3 seeds" in found["verdict"] and "more than chance" in found["verdict"]
    folders = sorted(path.name for path in (tmp_path / "out/retrained").glob("*/*"))
    assert folders == ["seed-2", "seed-2", "seed-3", "seed-3"]
    assert found["command"] in said and "0 (as given)" in said


@pytest.mark.parametrize("alphas", ["[0.1, 0.3, 0.5]", "{low: 0.1, high: 0.5, step: 0.2}"])
@pytest.mark.parametrize("trials, tried", [(16, 6), (4, 4)])
def test_of_a_few_settings_none_is_tried_twice(sweep, trials, tried, alphas):
    few = f"parameters:\n  --kd-alpha: {alphas}\n  --kd-temperature: [1, 2]\n"
    text = CONFIG.replace(PARAMETERS, few).replace("trials: 16", f"trials: {trials}") + "retrain: {best: 0}\n"
    _, found = sweep(text)
    assert len(found["trials"]) == len({values(trial) for trial in found["trials"]}) == tried
    _, again = sweep(text)  # nothing is left to do
    assert again["trials"] == found["trials"]


def test_values_of_several_flags(sweep, tmp_path):
    from kd_plugin.sweep.space import read_space

    (tmp_path / "cache").mkdir()
    text = CONFIG.replace(
        PARAMETERS,
        "parameters:\n  --kd-alpha: [0.3, 0.5]\n  teacher:\n    - --teacher-cache cache\n    - --teacher-path t.pt\n"
        "    - --kd-temperature 2 --teacher-path t.pt --kd-fused-head\n",
    ).replace("--kd-alpha 0.5", "--kd-alpha 0.5 --kd-fused-head --max-tokens 99")
    with pytest.raises(KDPluginError, match="--boom"):
        sweep(text.replace("--teacher-cache cache", "--teacher-cache cache --boom"), dry_run=True)
    with pytest.raises(KDPluginError, match="--kd-alpha varies in `teacher` and on its own"):
        sweep(text.replace("--kd-temperature 2", "--kd-temperature 2 --kd-alpha 1"), dry_run=True)
    with pytest.raises(KDPluginError, match="`teacher` has --seed, which the sweep itself gives"):
        sweep(text.replace("--kd-temperature 2", "--seed 2"), dry_run=True)
    with pytest.raises(KDPluginError, match="`parameters`: --teacher-cache none is not found"):
        sweep(text.replace("--teacher-cache cache", "--teacher-cache none"), dry_run=True)
    _, found = sweep(text.replace("- --teacher-path t.pt\n", "- --teacher-path t.pt --kd-fused-head\n"))
    tried = [(trial["values"]["--kd-alpha"], trial["values"]["teacher"]) for trial in found["trials"]]
    assert len(set(tried)) == len(tried) == 6
    for trial in found["trials"]:
        tau = 2 if "--kd-temperature 2" in trial["values"]["teacher"] else 1
        assert trial["value"] == pytest.approx(floor(float(trial["values"]["--kd-alpha"]), tau) + 3 / 90, abs=1e-5)
    given = next(trial for trial in found["trials"] if trial["given"])
    assert given["trial"] == 0 and given["values"] == {
        "--kd-alpha": "0.5",
        "teacher": "--teacher-path t.pt --kd-fused-head",
    }
    assert "--max-tokens 99 " in found["command"] and "--kd-temperature 2" in found["command"]
    space = read_space(read_sweep(str(tmp_path / "sweep.yaml")))
    train = read_sweep(str(tmp_path / "sweep.yaml")).train
    words = space.command(train, {"teacher": "--teacher-cache cache"})
    assert words[-2:] == ["--teacher-cache", "cache"] and not {"--teacher-path", "--kd-fused-head"} & set(words)
    assert words[words.index("--max-tokens") + 1] == "99"


def test_of_more_settings_none_is_tried_twice_and_good_ones_are_proposed(sweep):
    finite = "parameters:\n  --kd-alpha: {low: 0.1, high: 0.9, step: 0.1}\n  --kd-temperature: [0.5, 1, 2, 4, 8]\n"
    _, found = sweep(CONFIG.replace(PARAMETERS, finite).replace("trials: 16", "trials: 22") + "retrain: {best: 0}\n")
    tried = [values(trial) for trial in sorted(found["trials"], key=lambda trial: trial["trial"])]
    assert len(set(tried)) == len(tried) == 22
    # 10 trials are drawn at random, then the sampler knows better: of all settings, a fifth has the best temperature
    assert sum(float(tau) == 2 for _, tau in tried[12:]) >= 4


def test_halving_stops_the_worse_trials(sweep):
    _, found = sweep(CONFIG + "halving: {first: 30, factor: 2}\nretrain: {best: 0}\n")
    states = [trial["state"] for trial in found["trials"]]
    assert states.count("stopped early") >= 6
    done = [trial["value"] - 3 / 90 for trial in found["trials"] if trial["state"] == "done"]
    stopped = [floor(*values(trial)) for trial in found["trials"] if trial["state"] == "stopped early"]
    assert min(done) < min(stopped)
    assert all(trial["updates"] in (30, 60) for trial in found["trials"] if trial["state"] == "stopped early")
    assert found["retrained"] == [] and found["verdict"] == ""


def test_what_has_run_to_its_end_was_not_stopped_early(sweep):
    text = CONFIG.replace("updates: 90", "updates: 60").replace("trials: 16", "trials: 12\nseed: 5")
    _, found = sweep(text + "halving: {first: 30, factor: 2}\nretrain: {best: 0}\n")
    assert all((trial["state"] == "done") == (trial["updates"] == 60) for trial in found["trials"])
    assert sum(trial["updates"] == 60 for trial in found["trials"]) > 1


def test_crashes_and_nan_are_failed_trials(sweep):
    text = CONFIG.replace("low: 0.02, high: 0.95", "low: 0, high: 1").replace("trials: 16", "trials: 12")
    _, found = sweep(text.replace("--kd-temperature: {low: 0.5, high: 8, log: true}", "--kd-temperature: [1, 2]"))
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    others = [trial for trial in found["trials"] if trial["state"] == "done"]
    assert len(failed) + len(others) == 12 and others
    for trial in failed:
        alpha = trial["values"]["--kd-alpha"]
        assert trial["value"] is None
        assert (alpha > 0.95 and "planted failure" in trial["error"]) or (
            alpha < 0.02 and "not finite" in trial["error"]
        )
    assert all(0.02 <= trial["values"]["--kd-alpha"] <= 0.95 for trial in others)


def test_the_first_failure_ends_the_sweep(sweep, tmp_path):
    with pytest.raises(KDPluginError, match="first training fails.*planted failure"):
        sweep(CONFIG.replace("--kd-alpha 0.5", "--kd-alpha 0.99").replace("high: 0.95", "high: 1"))
    assert [path.name for path in (tmp_path / "out/trials").iterdir()] == ["0000"]
    with pytest.raises(KDPluginError, match="first training fails.*planted failure"):  # nor does the same command go on
        sweep(CONFIG.replace("--kd-alpha 0.5", "--kd-alpha 0.99").replace("high: 0.95", "high: 1"))
    assert [path.name for path in (tmp_path / "out/trials").iterdir()] == ["0000"]


def test_a_training_that_dies_after_its_sweep_is_trained_to_its_end(sweep, tmp_path):
    text = CONFIG.replace("trials: 16", "trials: 2") + "retrain: {best: 0}\n"
    (tmp_path / "hold").touch()
    code = "import sys; from kd_plugin.cli import main; sys.exit(main())"
    (tmp_path / "sweep.yaml").write_text(text)
    words = [sys.executable, "-c", code, "sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    second = tmp_path / "out/trials/0001"
    until(lambda: (second / "checkpoints/last").exists() and (second / "checkpoints/last").read_text() == "30")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def kill_training():
        os.kill(int((second / "running.lock").read_text()), signal.SIGKILL)  # as a machine without memory does
        (tmp_path / "hold").unlink()

    threading.Timer(1, kill_training).start()
    _, found = sweep(text)
    assert [(trial["state"], trial["updates"]) for trial in found["trials"]] == [("done", 90)] * 2
    assert (second / "checkpoints/started").read_text() == "xx"


def test_a_question_mark_in_the_folders_name_keeps_sweeps_apart(sweep, tmp_path):
    text = CONFIG.replace("trials: 16", "trials: 1") + "retrain: {best: 0}\n"
    for name in ("p?x", "p?y", "p#%41 z"):
        _, found = sweep(text, output=name)
        assert len(found["trials"]) == 1 and (tmp_path / name / "study.db").is_file()
    assert not (tmp_path / "p").exists()
    (tmp_path / "p?x/study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(KDPluginError, match=r"study\.db: cannot be read"):
        sweep(text, output="p?x")


@pytest.mark.parametrize("devices", [",", "0,", "0,,1"])
def test_a_device_without_a_name_is_refused(sweep, devices):
    with pytest.raises(KDPluginError, match="empty name"):
        sweep(dry_run=True, workers=0, devices=devices)


def test_a_large_seed(sweep):
    _, found = sweep(CONFIG.replace("trials: 16", "trials: 2\nseed: 20260101") + "retrain: {best: 0}\n")
    assert len(found["trials"]) == 2


def test_a_command_whose_value_is_not_to_be_tried_is_said(sweep, capsys):
    text = CONFIG.replace("low: 0.02", "low: 0.6").replace("trials: 16", "trials: 2")
    _, found = sweep(text + "retrain: {best: 1, seeds: [1]}\n")
    said = capsys.readouterr().err
    assert "the value of --kd-alpha in `train` is not among those to try" in said and "--kd-temperature" not in said
    assert not any(trial["given"] for trial in found["trials"])
    assert found["retrained"][0]["mean"] == pytest.approx(floor(0.5, 1) + 3 / 90)  # the command as it stands


def test_several_workers_run_every_trial_once(sweep, tmp_path):
    _, found = sweep(CONFIG.replace("trials: 16", "trials: 8"), workers=3)
    assert sorted(trial["trial"] for trial in found["trials"]) == list(range(8))
    starts = [path.read_text() for path in (tmp_path / "out").rglob("started")]
    assert len(starts) == 8 + 4 and set(starts) == {"x"}


def test_more_trials_continue_the_study_and_other_values_are_refused(sweep, tmp_path):
    _, first = sweep(CONFIG.replace("trials: 16", "trials: 3"))
    _, more = sweep(CONFIG.replace("trials: 16", "trials: 5"))
    of = {trial["trial"]: values(trial) for trial in first["trials"]}
    assert {number: given for number, given in ((t["trial"], values(t)) for t in more["trials"]) if number < 3} == of
    assert all(path.read_text() == "x" for path in (tmp_path / "out").rglob("started"))
    with pytest.raises(KDPluginError, match="the sweep of another file"):
        sweep(CONFIG.replace("updates: 90", "updates: 80"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(KDPluginError, match="is not empty"):
        sweep(output="mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_killed_sweep_goes_on_and_proposes_what_it_would_have(sweep, tmp_path, monkeypatch):
    text = CONFIG.replace("trials: 16", "trials: 4") + "retrain: {best: 1, seeds: [1, 5]}\n"
    _, whole = sweep(text)
    (tmp_path / "hold").touch()
    code = "import sys; from kd_plugin.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    second = tmp_path / "killed/trials/0001/checkpoints/last"
    until(lambda: second.exists() and int(second.read_text()) == 30)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    threading.Timer(1, (tmp_path / "hold").unlink).start()
    _, found = sweep(text, output="killed")
    for one, other in ((whole, found), (found, whole)):
        assert [(t["trial"], values(t), t["value"]) for t in one["trials"]] == [
            (t["trial"], values(t), t["value"]) for t in other["trials"]
        ]
    assert found["retrained"] == whole["retrained"]
    # the training that outlived its sweep was followed, not started a second time
    assert all(path.read_text() == "x" for path in (tmp_path / "killed").rglob("started"))


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interrupted_training_goes_on_from_its_checkpoint(sweep, tmp_path):
    text = CONFIG.replace("trials: 16", "trials: 1") + "retrain: {best: 0}\n"
    folder = tmp_path / "out/trials/0000"
    sweep(text)
    # as kill -9 of both leaves it: no result, half a line of the log, the checkpoint of an earlier validation
    (folder / "result.json").unlink()
    (folder / "checkpoints/last").write_text("30")
    log = (folder / "train.log").read_text()
    (folder / "train.log").write_text(log[: log.index('"valid_num_updates": "60"')])
    with sqlite3.connect(tmp_path / "out/study.db") as database:
        database.execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL")
    _, found = sweep(text)
    assert found["trials"][0]["value"] == pytest.approx(floor(0.5, 1) + 3 / 90)
    assert (folder / "checkpoints/started").read_text() == "xx"


def test_a_range_of_whole_numbers_switches_and_lists(sweep, tmp_path):
    from kd_plugin.sweep.space import read_space

    text = CONFIG.replace(
        PARAMETERS,
        "parameters:\n  --encoder-layers: {low: 1, high: 6}\n  --kd-fused-head: [true, false]\n"
        "  --kd-divergence: [forward_kl, js]\n  --lr: [0.001, '0.0005']\n  --dropout: {low: 0, high: 0.3, step: 0.1}\n",
    )
    said, _ = sweep(text, dry_run=True)
    assert "--encoder-layers: IntDistribution" in said and "fairseq-train data-bin" in said
    space = read_space(read_sweep(str(tmp_path / "sweep.yaml")))
    assert "--lr" not in space.given  # fairseq's default rate, 0.25, is not in the list
    words = space.words({"--kd-fused-head": "true", "--lr": "0.001", "--encoder-layers": 2, "--dropout": 0.1})
    assert words == ["--kd-fused-head", "--lr", "0.001", "--encoder-layers", "2", "--dropout", "0.1"]
    assert space.words({"--dropout": 0.1 + 0.2, "--lr": 1e-7 / 3}) == ["--dropout", "0.3", "--lr", "3.33333333333e-08"]
    assert space.words({"--kd-fused-head": "false"}) == []


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("trials: 16", "trails: 30", "unknown key `trails`"),
        ("t.pt", "absent.pt", "`train`: --teacher-path absent.pt is not found"),
        ("t.pt", "t.pt:absent.pt", "`train`: --teacher-path absent.pt is not found"),
        ("train: data-bin", "train: data-bin:absent", "`train`: the data absent is not found"),
        ("t.pt", "t.pt --finetune-from-model absent.pt", "`train`: --finetune-from-model absent.pt is not found"),
        (
            "--kd-alpha: {low: 0.02",
            "--teacher-path: [t.pt, absent.pt]\n  --kd-alpha: {low: 0.02",
            "`parameters`: --teacher-path absent.pt is not found",
        ),
        ("trials: 16", "trials: 0", "`trials: 0`"),
        ("updates: 90", "", "either `updates:` or `seconds:`"),
        ("updates: 90", "updates: 90\nseconds: 5", "either `updates:` or `seconds:`"),
        ("updates: 90", "seconds: nan", "`seconds: nan`"),
        ("validate: 30", "validate: 300", "`validate: 300` is more than"),
        ("validate: 30", "validate: 30\nobjective: [a]", "`objective` is not one word"),
        ("validate: 30", "validate: 30\ndirection: up", "`direction: up`"),
        ("validate: 30", "validate: 30\nhalving: {first: 15}", "no multiple of `validate"),
        ("validate: 30", "validate: 30\nhalving: {first: 90}", "not below `updates"),
        ("validate: 30", "validate: 30\nhalving: {first: 30, factor: 1}", "`factor: 1`"),
        ("validate: 30", "validate: 30\nretrain: {best: 1, seeds: [1, 1]}", "different seeds"),
        ("low: 0.02", "low: 0.97", "is not below"),
        ("low: 0.5", "low: 0", "needs numbers above 0"),
        ("high: 8", "high: x", "`high: x`"),
        ("--kd-temperature: {", "--kd-temperatur: {", "no --kd-temperatur with this command.*--kd-temperature"),
        ("--kd-temperature: {low: 0.5, high: 8, log: true}", "--kd-divergence: [kl, js]", "invalid choice: 'kl'"),
        ("--kd-temperature: {low: 0.5, high: 8, log: true}", "--kd-divergence: {low: 1, high: 2}", "is no number"),
        ("--kd-temperature: {low: 0.5, high: 8, log: true}", "--decoder-layers: {low: 1, high: 2.5}", "whole numbers"),
        ("--kd-temperature: {low: 0.5, high: 8, log: true}", "--kd-fused-head: [true, maybe]", "is a switch"),
        ("--kd-temperature: {low: 0.5, high: 8, log: true}", "--kd-fused-head: {low: 0, high: 1}", "is a switch"),
        ("--kd-alpha 0.5", "--kd-alpha 0.5 --lr '1e-3 x'", "fairseq-train refuses the command"),
        ("data-bin", "CUDA_VISIBLE_DEVICES=0 fairseq-train data-bin", "begins with CUDA_VISIBLE_DEVICES=0"),
        ("validate: 30", "validate: 30\nseed: 99999999999", "a seed of 99999999999"),
        ("validate: 30", "validate: 30\nretrain: {seeds: [1, 4294967296]}", "a seed of 4294967296"),
        ("--kd-alpha 0.5", "--kd-alpha 0.5 --valid-subset dev", "--valid-subset dev"),
        ("--kd-alpha 0.5", "--kd-alpha 0.5 --disable-validation", "--disable-validation"),
        ("--kd-alpha 0.5", "--kd-alpha 0.5 --validate-after-updates 60", "--validate-after-updates 60"),
        ("--kd-temperature: {low: 0.5, high: 8, log: true}", "--max-update: [1, 2]", "given by the sweep itself"),
        ("--kd-temperature: {low: 0.5, high: 8, log: true}", "--kd-temperature: [1]", "two or more"),
        ("--kd-alpha 0.5", "--kd-alpha 0.5 --save-dir x", "--save-dir, which the sweep itself gives"),
        ("--kd-alpha 0.5", "--kd-alpha 0.5 --kd-alhpa 1", "--kd-alhpa"),
        ("--kd-alpha 0.5", "--kd-alpha half", "invalid .*float.* 'half'"),
        ("--arch transformer", "--arch transformr", "transformr"),
        ("--arch transformer", "", "fairseq-train refuses the command: --arch is missing"),
        ("validate: 30", "validate: 30\nretrain: {seeds: [1, '01']}", "no list of different seeds"),
        (
            "{low: 0.02, high: 0.95}",
            "{low: 0.02, high: 0.95, step: 1e-300}",
            "`step: 1e-300` of --kd-alpha is too small",
        ),
        ("trials: 16", "trials: 99999999999999999999", "`trials: 99999999999999999999`"),
        ("--kd-alpha: {low: 0.02, high: 0.95}", "--warmup-updates: {low: 1, high: 1e30}", "takes whole numbers"),
        ("trials: 16", "trials: [", "not valid YAML"),
        ("trials: 16", "trials: 16\ntrials: 16", "occurs twice"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(sweep, tmp_path, old, new, message):
    assert old in CONFIG
    with pytest.raises(KDPluginError, match=message):
        sweep(CONFIG.replace(old, new, 1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("style", ["|", ">"])
def test_a_command_as_the_shell_takes_it(tmp_path, style):
    command = "  bin/fairseq-train data-bin \\\n    --arch transformer \\\n    --save-interval 'a\\ b'\n"
    text = f"train: {style}\n{command}" + CONFIG[CONFIG.index("parameters:") :]
    (tmp_path / "a.yaml").write_text(text.replace("--save-interval", "--path"))
    words = read_sweep(str(tmp_path / "a.yaml")).train
    assert words[:5] == ["data-bin", "--arch", "transformer", "--path", "a\\ b"]


def test_what_the_file_says(tmp_path):
    (tmp_path / "a.yaml").write_text(CONFIG + "halving: {first: 30}\nobjective: bleu\nseed: 4\nretrain: {best: 3}\n")
    sweep = read_sweep(str(tmp_path / "a.yaml"))
    assert sweep.halving == Halving(30, 3) and sweep.direction == "maximize" and sweep.seed == 4
    assert sweep.retrain == (3, [1, 2, 3]) and sweep.parameters["--kd-temperature"] == Range(0.5, 8, None, True)
    assert sweep.better(2.0, 1.0) and not sweep.better(1.0, 2.0)


def test_the_report_shows_a_sweep(sweep, tmp_path):
    from kd_plugin.cli import main

    pytest.importorskip("vl_convert")
    text = CONFIG.replace("trials: 16", "trials: 4") + "retrain: {best: 1, seeds: [1, 2]}\n"
    sweep(text.replace("parameters:\n", "parameters:\n  --kd-divergence: [forward_kl, js]\n"))
    page = tmp_path / "report.html"
    assert main(["report", "--sweep", str(tmp_path / "out"), "--output", str(page)]) == 0
    html = page.read_text()
    specs = [json.loads(part[: part.index("</script>")]) for part in html.split('<script type="application/json">')[1:]]
    by_parameter, two, everything = specs
    flags = ["--kd-divergence", "--kd-alpha", "--kd-temperature"]
    assert [part["title"]["text"] for part in by_parameter["concat"]] == flags
    axes = [part["encoding"]["x"] for part in by_parameter["concat"]]
    assert [axis["field"] for axis in axes] == flags and axes[0]["axis"]["labelLimit"] >= 400
    content = json.loads((tmp_path / "out/sweep.json").read_text())
    drawn = {row["trial"]: row["nll_loss"] for row in two["concat"][0]["data"]["values"]}
    assert sorted(drawn.values()) == sorted(trial["value"] for trial in content["trials"])
    assert two["concat"][0]["encoding"]["y"]["scale"]["type"] == "log"
    assert {row["position"] for row in everything["concat"][0]["data"]["values"]} <= {0, 1 / 3, 2 / 3, 1}
    assert "With other seeds" in html and content["verdict"] in html and content["verdict"]
    (tmp_path / "out/sweep.json").write_text(json.dumps({**content, "trials": [{"trial": 1}]}))
    assert main(["report", "--sweep", str(tmp_path / "out"), "--output", str(tmp_path / "second.html")]) == 1


@pytest.mark.parametrize("during", ["trials", "other seeds"])
def test_an_interruption_stops_the_trainings_and_the_same_command_continues(sweep, tmp_path, during):
    text = CONFIG.replace("trials: 16", "trials: 2") + "retrain: {best: 1, seeds: [1, 2]}\n"
    held = "/0001/" if during == "trials" else "/seed-2/"
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(stand_in.read_text().replace("/0001/", held))
    (tmp_path / "sweep.yaml").write_text(text)
    (tmp_path / "hold").touch()
    process = start("kd-plugin", "sweep", tmp_path / "sweep.yaml", "--output", tmp_path / "out")
    until(lambda: any(held in str(path) and path.read_text() == "30" for path in (tmp_path / "out").rglob("last")))
    (log,) = (path for path in (tmp_path / "out").rglob("running.lock") if held in str(path))
    training = int(log.read_text())
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and "the same command continues" in said
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)
    (tmp_path / "hold").unlink()
    _, found = sweep(text)
    assert len(found["trials"]) == 2 and all(trial["state"] == "done" for trial in found["trials"])
    assert len(found["retrained"][1]["scores"]) == 2
