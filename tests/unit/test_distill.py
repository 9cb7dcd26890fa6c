"""`kd-plugin distill`: what its file can say, the steps that follow from it, and why each would run."""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from kd_plugin import cli
from kd_plugin.checkpoints import average
from kd_plugin.cli.distill import _check, _flags
from kd_plugin.errors import KDPluginError
from kd_plugin.pipeline import data
from kd_plugin.pipeline.checkpoints import reached_its_end
from kd_plugin.pipeline.config import read_pipeline
from kd_plugin.pipeline.plan import SHAPE, steps_of
from kd_plugin.pipeline.run import _changed, _check_commands, _check_inputs, _check_ours, _failure
from kd_plugin.pipeline.step import main as step_main
from kd_plugin.pipeline.step import run as run_step
from kd_plugin.pipeline.step import state_of
from kd_plugin.pipeline.teaching import Step
from kd_plugin.report.times import read_times
from kd_plugin.runners.fairseq_train import parse
from tests.support import ROOT

TRAIN = "--arch transformer --optimizer adam --lr 0.01 --max-tokens 100 --max-update 5"
FILE = f"""\
output: out
corpus: prepared
teacher: {{path: teacher.pt}}
students:
  small: {{train: "{TRAIN}"}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose name Snakemake takes for a wildcard, and YAML for a comment."""
    tmp_path = tmp_path / "a {b} #1"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in ("prepared/raw", "prepared/data-bin"):
        Path(folder).mkdir(parents=True)
    for name in (
        "spm.model",
        "dict.txt",
        *(f"raw/{split}.{lang}" for split in ("train", "valid", "test") for lang in ("en", "de")),
    ):
        Path("prepared", name).write_text("x\n")
    Path("prepared/prepared.txt").write_text("pair en-de\ntext 1\n")
    Path("prepared/testsets.txt").write_text("test flickr\n")
    for name in ("teacher.pt", "mono.en"):
        Path(name).write_text("x\n")
    return tmp_path


def planned(text):
    Path("c.yaml").write_text(text)
    pipeline = read_pipeline("c.yaml", _flags)
    steps = steps_of(pipeline)
    _check_commands(pipeline, steps, _check)
    return {step.name: step for step in steps}


def words(step, number=0):
    return " ".join(step.commands[number])


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("teacher:", "techer:", "line 3: unknown key `techer` at the top. Remedy: `teacher`?"),
        ("small: {train", "small: {trian", "line 5: unknown key `trian` of `small`. Remedy: `train`?"),
        ("path: teacher.pt", "path: other.pt", "line 3: `teacher` names other.pt, which does not exist"),
        ("corpus: prepared", "corpus: elsewhere", "line 2: elsewhere was not made by prepare-*.sh"),
        ("students:", "decode: {baem: 4}\nstudents:", "line 4: unknown key `baem` of `decode`. Remedy: `beam`?"),
        ("students:", "decode: {output: x}\nstudents:", "unknown key `output` of `decode`"),
        (
            "students:",
            "decode: {beam: four}\nstudents:",
            "line 4: `decode`: argument --beam: invalid int value: 'four'",
        ),
        ("students:", "decode: --baem 4\nstudents:", "line 4: unknown key `baem` of `decode`. Remedy: `beam`?"),
        ("students:", "decode: --beam 4 extra\nstudents:", "line 4: `decode`: unrecognized arguments: extra"),
        ("students:", "decode: --beam '4\nstudents:", "line 4: `decode` cannot be split into words"),
        ("students:", "decode: {beam: 0}\nstudents:", "line 4: `decode`: --beam 0: must lie in 1"),
        ("students:", "filter: [1]\nstudents:", "line 4: `filter` is no mapping"),
        (
            "students:",
            "evaluate: {baseline: smal}\nstudents:",
            "line 4: `baseline: smal` of `evaluate` is no model. Rem",
        ),
        (
            "students:",
            "export: {a: {format: fairseq, quantization: int8}}\nstudents:",
            "line 4: `export`: --quantization: only with --format ctranslate2. Remedy: leave it out",
        ),
        ("students:", "decode: {engine: http}\nstudents:", "`decode`"),
        ("students:", "decode: {nbest: 9}\nstudents:", "line 4: `decode`: --nbest 9, --beam 5: a search finds at most"),
        (
            "students:",
            "score: {path: t.pt, metric: comet-kiwi}\nstudents:",
            "`score`: --path and --metric: exactly one",
        ),
        ("students:", "rounds: {count: -1}\nstudents:", "line 4: `count: -1`"),
        ("students:", "rounds: {count: 2147483647}\nstudents:", "line 4: `count: 2147483647`. Remedy: a whole number"),
        ("students:", "threads: many\nstudents:", "line 4: `threads: many`"),
        ("--arch transformer", "--arch transfromer", "transfromer"),
        ("--arch transformer", "", "small: fairseq-train refuses the command: --arch is missing"),
        (
            "--lr 0.01",
            "--save-dir x",
            "has --save-dir, which distill itself gives",
        ),
        ("--max-update 5", "--max-updaet 5", "max-updaet"),
        ('5"}', '5", average: 3, every: 2}', "line 4, small: `average: 3` with `every: 2`, but --max-update 5"),
        ('5"}', '5 --max-epoch 2", average: 3}', "line 4, small: `average: 3` epochs, but --max-epoch 2"),
        (
            '5"}',
            '5", average: 2, every: 2}\nrounds: {count: 1, train: "--max-update 3"}',
            "line 4, round1: `average: 2` with `every: 2`, but --max-update 3",
        ),
        ('5"}', '5", seeds: [1, 1]}', "`seeds` of `small` is no list of different seeds"),
        ('5"}', '5", teacher: cash}', "`teacher: cash` of `small`. Remedy: cache, online, none"),
        ('5"}', '5", init: true}', "`init` of `small` without `init:`"),
        ("output: out", "output: ~/x", "line 1: `output: ~/x`: only a shell replaces ~"),
        ("output: out", "output: a:b", "has a colon, comma or equals sign"),
        ("teacher: {path: teacher.pt}\n", "", "`teacher:` is missing"),
        ("path: teacher.pt", "path: teacher.pt, train: x", "needs either `path` or `train`"),
        ("small:", "sm/all:", "`sm/all` of `students` cannot be a folder's name"),
        ("small:", '"small\\n":', "of `students` cannot be a folder's name"),
        ("small:", "small.json:", "`small.json` of `students` cannot be a folder's name"),
        ("small:", "Cache:", "line 4: `Cache` would be the name of two things in the output folder"),
        ("small:", "report:", "line 4: `report` would be the name of two things in the output folder"),
        ("small:", "all:", "line 4: `all` would be the name of two things in the output folder"),
        ("students:\n  small", "students: no\ngap: {bootstrap: 0}\n#", "`students` has none"),
        ('5"}', '5", seeds: [1, "01"]}', "`seeds` of `small` is no list of different seeds"),
        ('5"}', '5", seeds: [1_0]}', "`seeds: 1_0`"),
        ("students:", "score: {path: absent.pt}\nstudents:", "line 4: `score`: --path absent.pt is not found"),
        ('5"}', '5 --encoder-embed-path absent.vec"}', "`students`: --encoder-embed-path absent.vec is not found"),
        ("students:", "gap: {train: prepared/absent}\nstudents:", "`gap`: --train prepared/absent is not found"),
    ],
)
def test_what_the_file_cannot_say_is_refused_before_anything_runs(old, new, said, place):
    text = FILE.replace(old, new, 1)
    assert text != FILE
    with pytest.raises(KDPluginError, match="(?s)c.yaml.*Remedy: .+") as refused:
        planned(text)
    assert said in str(refused.value)
    assert not Path("out").exists()


def test_the_whole_way_and_what_each_step_waits_for(place):
    steps = planned(FILE)
    assert list(steps) == [
        "decoded", "selected", "filtered", "mixed", "cache", "small", "small-int8", "evaluation", "gap-small", "report",
    ]  # fmt: skip
    assert {name: step.after for name, step in steps.items()} == {
        "decoded": [], "selected": ["decoded"], "filtered": ["selected"], "mixed": ["filtered"], "cache": ["mixed"],
        "small": ["mixed", "cache"], "small-int8": ["small"], "evaluation": ["small", "small-int8"],
        "gap-small": ["evaluation"], "report": ["evaluation", "gap-small"],
    }  # fmt: skip
    teacher = str(place / "teacher.pt")
    assert teacher in steps["decoded"].reads and str(place / "prepared/raw/train.en") in steps["decoded"].reads
    assert str(place / "prepared/raw/train.de") in steps["selected"].reads
    assert f"--reference {place}/prepared/raw/train.de" in words(steps["selected"])
    assert "--beam 5 --nbest 5" in words(steps["decoded"]) and "--subset train,train1,valid" in words(steps["cache"])
    assert "--teacher-cache cache" in words(steps["small"]) and TRAIN in words(steps["small"])


def test_students_and_seeds_share_what_comes_before_them(place):
    steps = planned(FILE.replace('5"}', '5", seeds: [1, 2], average: 2, every: 2}') + f'  plain: {{train: "{TRAIN}", '
                    "teacher: none, data: original}\n")  # fmt: skip
    assert [name for name in steps if name.startswith(("decoded", "cache"))] == ["decoded", "cache"]
    for seed in (1, 2):
        assert f"--seed {seed} " in words(steps[f"small-seed{seed}"])
        assert "--last 2 --every 2" in words(steps[f"small-seed{seed}"], 1)
    assert "--task translation" in words(steps["plain"]) and steps["plain"].after == []
    assert f"{place}/prepared/data-bin" in words(steps["plain"])
    for model in (
        "small-seed1=small-seed1/averaged.pt",
        "small-seed2=small-seed2/averaged.pt",
        "plain=plain/checkpoint_best.pt",
    ):
        assert f"--model {model}" in words(steps["evaluation"])


def test_further_text_a_trained_teacher_first_weights_and_rounds(place):
    text = FILE.replace("corpus: prepared", "corpus: {prepared: prepared, monolingual: mono.en}")
    text = text.replace("path: teacher.pt", f'train: "{TRAIN}", average: 3') + "init: {encoder-layers: 1}\n"
    text += 'rounds: {count: 2, train: "--max-update 3"}\nexport: false\n'
    steps = planned(text)
    assert list(steps) == [
        "teacher", "decoded", "selected", "filtered", "mono-decoded", "mono-selected", "mono-filtered", "mixed",
        "cache", "init", "small", "rollouts1", "own1", "cache1", "round1", "rollouts2", "own2", "cache2", "round2",
        "evaluation", "gap-small", "report",
    ]  # fmt: skip
    assert "--by score" in words(steps["mono-selected"]) and steps["mono-decoded"].after == ["teacher"]
    assert steps["init"].after == ["teacher", "mixed"] and "init" in steps["small"].after
    assert "{shape:init/student.init.json}" in steps["small"].commands[0]
    assert "--path small/checkpoint_best.pt" in words(steps["rollouts1"])
    assert "--finetune-from-model round1/checkpoint_best.pt" in words(steps["round2"])
    assert "--kd-alpha 0" in words(steps["round2"]) and "--teacher-cache cache2" in words(steps["round2"])
    assert "--student round2=evaluation/translations/round2/flickr.txt" in words(steps["gap-small"])


def test_a_language_model_behind_a_server_teaches_by_its_translations_alone(place):
    text = FILE.replace("teacher: {path: teacher.pt}", "decode: {engine: http, url: 'http://x/v1', model: m, nbest: 1}")
    steps = planned(text)
    assert "cache" not in steps and "gap-small" not in steps
    assert "--task translation" in words(steps["small"]) and "--path" not in words(steps["decoded"])


def test_raw_text_gets_its_subwords_here(place):
    corpus = "{source-lang: en, target-lang: de, train: prepared/raw/train, valid: prepared/raw/valid, "
    corpus += "tests: {t: prepared/raw/test}, "
    steps = planned(FILE.replace("corpus: prepared", f"corpus: {corpus}subwords: {{vocab_size: 40}}}}"))
    assert next(iter(steps)) == "corpus" and "--subwords vocab_size=40" in words(steps["corpus"])
    assert "corpus" in steps["decoded"].after and "--sentencepiece-model corpus/spm.model" in words(steps["decoded"])


def test_the_example_is_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    pipeline = read_pipeline("examples/translation/quickstart.yaml", _flags)
    _check_commands(pipeline, steps_of(pipeline), _check)


def program(place, name, text):
    (place / name).write_text(f"#!/bin/sh\n{text}\n")
    (place / name).chmod(0o755)


def settings_of(words):
    """As fairseq-train reads them, of a step or of a recipe's command."""
    return vars(parse("here", [word for word in words[1:] if not word.startswith("{shape")])[1])


@pytest.mark.parametrize("given", [{}, {"INIT": "teacher", "ALPHA": "0.2", "LR": "0.1", "MONO": "mono.en"}])
def test_the_script_s_file_trains_as_the_recipes_do(given, place):
    program(place, "kd-plugin", 'cat "$2" >c.yaml\nmkdir -p out/evaluation\n>out/evaluation/evaluation.md')
    program(place, "fairseq-train", 'printf "%s\\0" "$0" "$@" >words')
    program(place, "python", ":")  # no checkpoint to average
    env = {**os.environ, "MAX_UPDATE": "50", "AVERAGE": "4", "PATH": f"{place}:{os.environ['PATH']}", **given}
    script = ["bash", str(ROOT / "scripts/distill_pipeline.sh"), "prepared", "out"]
    subprocess.run(script, env={**env, "FILTER": "--max-length 9", "ROUNDS": "1"}, check=True)
    steps = planned(Path("c.yaml").read_text())
    assert "--max-length 250 --max-length 9 --text" in words(steps["filtered"])
    assert ("mono-decoded" in steps) == ("MONO" in given) and "--max-update 12" in words(steps["round1"])
    if given:  # the shape is the teacher's, with what it shares
        shaped = [name for name in ("student", "baseline", "round1") if SHAPE in steps[name].commands[0]]
        assert len(shaped) == 3 and "--finetune-from-model init/student.pt" in words(steps["student"])

    def differences(step, *arguments, **variables):
        command = ["bash", str(ROOT / "examples/translation" / arguments[0]), *arguments[1:]]
        subprocess.run(command, env={**env, "SAVE_INTERVAL_UPDATES": "3", **variables}, check=True)
        recipe, planned = settings_of(Path("words").read_text().split("\0")[:-1]), settings_of(steps[step].commands[0])
        return {name for name in recipe.keys() | planned if recipe.get(name) != planned.get(name)}

    Path("cache").mkdir()
    languages = {"source_lang", "target_lang"}  # recipes let fairseq find them out
    expected = {"max_epoch", *languages, *(["finetune_from_model", "share_all_embeddings"] if given else [])}
    mixed = ["mixed/data-bin", "cache", "student", "--max-update", "50"]
    assert differences("student", "distill.sh", *mixed) - {"share_decoder_input_output_embed"} == expected
    original = [f"{place}/prepared/data-bin", "none", "baseline", "--max-update", "50"]
    assert differences("baseline", "distill.sh", *original, KD="0") == expected - {"finetune_from_model"}
    teacher = [f"{place}/prepared/data-bin", "teacher"]
    assert differences("teacher", "train-teacher.sh", *teacher, AVERAGE="8", LR="0.005") == languages


def test_print_config_is_the_file_with_all_defaults_and_reads_the_same(place, capsys):
    Path("c.yaml").write_text(FILE)
    assert cli.main(["distill", "c.yaml", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["cache"] == {"k": "16"}
    assert planned(printed) == planned(FILE)


def test_a_dry_run_shows_all_steps_reads_a_profile_and_writes_nothing(place, capsys):
    pytest.importorskip("snakemake", reason="snakemake is not installed")
    Path("c.yaml").write_text(FILE)
    Path("profile").mkdir()
    Path("profile/config.yaml").write_text("cores: 3\nset-threads:\n  small: 2\n")
    assert cli.main(["distill", "c.yaml", "--dry-run", "--profile", "profile"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 10 and all("| not done yet |" in row for row in rows)
    assert not Path("out").exists()
    Path("profile/config.yaml").write_text("coers: 3\n")
    assert cli.main(["distill", "c.yaml", "--dry-run", "--profile", "profile"]) == 1
    assert "coers" in capsys.readouterr().err


def test_what_is_the_users_is_not_written_over(place, capsys):
    pytest.importorskip("snakemake", reason="snakemake is not installed")
    Path("c.yaml").write_text(FILE)
    Path("out/decoded").mkdir(parents=True)
    assert cli.main(["distill", "c.yaml"]) == 1
    assert "out has a decoded, which no distillation made" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["decoded"]


def step(commands, **others):
    given = {
        "name": "s",
        "what": "it",
        "section": "decode",
        "commands": commands,
        "product": "s",
        "after": [],
        "reads": [],
    }
    return {**given, "workers": False, "resumes": True, **others}


def test_a_step_goes_on_with_its_own_leftovers_and_not_with_those_of_another_command(place):
    script = "mkdir -p s && echo x >>s/made && test -e go"
    of_this = step([["sh", "-c", script]])
    assert run_step(of_this, 1, 0) == 1 and not Path("done/s").exists() and state_of("s")["error"] == "exit status 1"
    Path("go").touch()
    assert run_step(of_this, 1, 0) == 0 and Path("s/made").read_text() == "x\nx\n"  # it found what the first had left
    assert run_step(of_this, 1, 0) == 0 and Path("s/made").read_text() == "x\nx\n"  # done before
    other = step([["sh", "-c", script + " "]])
    assert run_step(other, 1, 0) == 0 and Path("s/made").read_text() == "x\n"
    Path("times/s.tsv").touch()  # as Snakemake writes it; a step done anew has no time as long as it runs
    edited = step([["sh", "-c", f"{script}; ls times >>s/made"]], reads=[str(place / "go")])
    assert run_step(edited, 1, 0) == 0
    Path("go").write_text("edited")
    assert run_step(edited, 1, 0) == 0 and Path("s/made").read_text() == "x\n"
    shutil.rmtree("s")
    assert run_step(edited, 1, 0) == 0 and Path("s/made").exists()


def test_a_step_killed_between_its_commands_does_not_repeat_those_that_ended(place):
    trains = step([["sh", "-c", "mkdir -p s && echo x >>s/made"], ["sh", "-c", "test -e go || kill -9 $$"]])
    assert run_step(trains, 1, 0) == 1 and "SIGKILL ended sh" in state_of("s")["error"]
    Path("s/.weights.0123abcd.tmp").touch()  # half a file
    Path("go").touch()
    assert run_step(trains, 1, 0) == 0 and Path("s/made").read_text() == "x\n"
    assert [path.name for path in Path("s").iterdir()] == ["made"]


def test_a_step_that_cannot_write_or_read_says_so_and_can_still_go_on(place, monkeypatch, capsys):
    trains = step([["sh", "-c", "mkdir -p s && test -e go"]], reads=[str(place / "given")])
    Path("given").touch()
    assert run_step(trains, 1, 0) == 1
    job = state_of("s")["job"]
    Path("plan.json").write_text(json.dumps({"steps": {"s": trains}, "workers": 0}))
    monkeypatch.setattr("sys.argv", ["step", "s", "1"])
    Path("given").unlink()
    assert step_main() == 1 and "s: [Errno 2] No such file" in capsys.readouterr().out
    assert "given" in state_of("s")["error"] and state_of("s")["job"] == job
    assert "s (" in str(_failure(Path(), [Step(**trains)], 1)) and "given" in str(_failure(Path(), [Step(**trains)], 1))

    shutil.rmtree("done")
    Path("logs/snakemake.log").write_text("it failed\n")
    assert "Snakemake: SIGKILL ended it" in str(_failure(Path(), [Step(**trains)], -9))
    assert "Snakemake: it failed (" in str(_failure(Path(), [Step(**trains)], 1))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: argparse.Namespace(free=0))
    assert "no space is left. Remedy: free some" in str(_failure(Path(), [Step(**trains)], 1))


def test_what_is_half_removed_when_a_step_is_killed_is_not_taken_for_its_product(place, monkeypatch):
    first = step([["sh", "-c", "mkdir -p s && echo 1 >s/one && echo 1 >s/two"]])
    assert run_step(first, 1, 0) == 0

    def killed(folder):
        (folder / "one").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        run_step(step([["sh", "-c", "mkdir s"]]), 1, 0)
    assert not Path("s/one").exists()
    assert run_step(first, 1, 0) == 0 and Path("s/one").exists()  # back to the first command


def checkpoint(name, updates):
    Path("s").mkdir(exist_ok=True)
    args = argparse.Namespace(arch="transformer", task="translation", max_update=9)
    extra = {"train_iterator": {"epoch": 1}, "epoch": 1, "val_loss": 1.0}
    history = [{"num_updates": updates, "criterion_name": "", "lr_scheduler_state": {}, "optimizer_name": ""}]
    state = {"model": {"w": torch.zeros(1)}, "args": args, "optimizer_history": history, "extra_state": extra}
    torch.save({**state, "last_optimizer_state": {}}, f"s/{name}.pt")


def test_a_training_killed_after_its_last_update_makes_no_other(place):
    train = "fairseq-train data --save-dir s --max-update 7 --max-update=9".split()
    assert not reached_its_end(train)
    checkpoint("checkpoint_last", 8)
    assert not reached_its_end(train) and reached_its_end([*train, "--max-update", "8"])
    checkpoint("checkpoint_last", 9)
    assert reached_its_end(train) and not reached_its_end([*train, "--max-update", "0"])  # 0: without end


def test_a_last_checkpoint_that_a_kill_cut_short_is_copied_again(place):
    train = "fairseq-train data --save-dir s --max-update 9".split()
    for updates, name in ((6, "checkpoint2"), (9, "checkpoint_best"), (9, "checkpoint_last")):
        checkpoint(name, updates)
        os.utime(f"s/{name}.pt", (updates, updates))
    last = Path("s/checkpoint_last.pt")
    last.write_bytes(last.read_bytes()[:-100])
    assert reached_its_end(train) and last.read_bytes() == Path("s/checkpoint_best.pt").read_bytes()
    for path in Path("s").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert not reached_its_end(train) and not last.exists()


def test_a_full_disk_is_one_line_of_the_data_s_step_too(monkeypatch, capsys):
    def full(args):
        raise OSError(28, "No space left on device", "corpus/spm.model")

    monkeypatch.setattr(data, "make_data", full)
    given = "--source-lang en --target-lang de --output corpus --train a --valid b"
    monkeypatch.setattr("sys.argv", ["data", *given.split()])
    assert data.main() == 1
    assert capsys.readouterr().err == "[Errno 28] No space left on device: 'corpus/spm.model'\n"


def test_half_an_average_has_a_name_by_which_the_step_removes_it(place, monkeypatch):
    checkpoint("checkpoint1", 8)
    written = []

    def full(state, file):
        written.append(Path(file.name))
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("sys.argv", "average s --last 1 --output s/averaged.pt".split())
    with pytest.raises(SystemExit, match="No space left"):
        average.main()
    assert written[0].match("s/.*.tmp") and sorted(Path("s").iterdir()) == [Path("s/checkpoint1.pt")]


def chain(place):
    """Two steps that are done; the first reads the file `given`."""
    (place / "given").write_text("1")
    steps = [step([["sh", "-c", f"mkdir {name}"]], name=name, product=name) for name in "ab"]
    steps[0]["reads"], steps[1]["after"] = [str(place / "given")], ["a"]
    assert [run_step(each, 1, 0) for each in steps] == [0, 0]
    return [Step(**each) for each in steps]


def test_a_file_replaced_by_an_older_one_repeats_its_step_and_what_follows(place):
    steps = chain(place)
    assert _changed(place, steps) == {}
    os.utime(place / "given", (1, 1))
    assert _changed(place, steps) == {"a": "its command or a file that it reads has changed", "b": "after a"}
    Path("a").rmdir()
    assert _changed(place, steps)["a"] == "its product is missing"


def test_a_step_that_is_found_done_keeps_its_time(place):
    steps = chain(place)
    header = "s\tcpu_time\tmax_rss\n"
    Path("times/a.tsv").write_text(f"{header}50.0\t40.0\t30.0\n")
    for each in steps:
        assert run_step(each._asdict(), 1, 0) == 0
        Path(f"times/{each.name}.tsv").write_text(f"{header}0.1\tNA\tNA\n")  # as Snakemake writes then
    times = {one.step: one for one in read_times("times")}
    assert times["a"][1:4] == (50.0, 40.0, 30.0)
    seconds = json.loads(Path("times/b.json").read_text())["seconds"]
    assert times["b"][1:4] == (seconds, None, None)  # killed before Snakemake could write
    Path("times/b.json").unlink()
    assert run_step(steps[1]._asdict(), 1, 0) == 0 and not Path("times/b.json").exists()  # done all the same


def test_only_a_folder_that_distill_began_is_its_own(place):
    steps = chain(place)
    Path(".plan.json.0123abcd.tmp").touch()  # of a run killed in the middle of its first file
    _check_ours(place, steps, begun=True)
    with pytest.raises(KDPluginError, match="which no distillation made"):
        _check_ours(place, steps, begun=False)
    Path("mine").mkdir()
    Path("mine/plan.json").touch()
    with pytest.raises(KDPluginError, match="mine has a plan.json, which no distillation made"):
        _check_ours(Path("mine"), steps, begun=False)


def test_what_a_step_would_write_over_is_no_input(place):
    steps = chain(place)
    reads = steps[1]._replace(reads=[str(place / "a/x")])
    with pytest.raises(KDPluginError, match="would overwrite .*a/x, which the step b reads. Remedy"):
        _check_inputs(place, [steps[0], reads])
    _check_inputs(place / "elsewhere", [steps[0], reads])
