"""A teacher's answers written by `kd-plugin cache` and trained on by the real fairseq-train."""

import json
import shutil
import time

import pytest

from kd_plugin.cache.store import Store
from kd_plugin.compat import TORCH_VERSION
from tests.support import (
    MODEL,
    PLUGIN,
    assert_same_weights,
    free_port,
    load,
    logged,
    make_checkpoint,
    run,
    run_together,
    start,
    training,
)

SGD = ["--optimizer", "sgd", "--lr", 0.1, "--dropout", 0]
SHORT = ["--max-update", 20, "--no-epoch-checkpoints", "--disable-validation"]


def write(workspace, folder, *flags, data=None, **kwargs):
    command = ["kd-plugin", "cache", data or workspace.data, "--teacher-path", workspace.teacher]
    return run(*command, "--cache-dir", folder, *flags, **kwargs)


def cached(folder, *flags):
    return [*PLUGIN, "--teacher-cache", folder, *flags]


def store_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def everything(workspace, tmp_path_factory):
    """All entries of every distribution, of training and validation data, at temperature 2."""
    folder = tmp_path_factory.mktemp("cache")
    vocab = len((workspace.data / "dict.de.txt").read_text().splitlines()) + 4
    write(workspace, folder, "--subset", "train,valid", "--k", vocab, "--temperature", 2)
    return folder


@pytest.fixture(scope="module")
def few(workspace, tmp_path_factory):
    """Eight entries, training data, several shards."""
    folder = tmp_path_factory.mktemp("cache of eight")
    write(workspace, folder, "--k", 8, "--shard-tokens", 500)
    return folder


def test_all_entries_train_as_the_teacher_itself_does(workspace, everything, tmp_path):
    """To fp16 rounding of the log-probabilities, in training and validation."""
    same = ["--kd-alpha", 0.3, "--kd-temperature", 2, "--kd-divergence", "js"]
    same += [*SGD, "--max-update", 30, "--no-epoch-checkpoints", "--validate-interval-updates", 15]
    same += ["--max-tokens-valid", 150]
    online, from_cache = run_together(
        training(workspace.data, tmp_path / "online", *workspace.distil(*same)),
        training(workspace.data, tmp_path / "cached", *cached(everything, *same)),
    )
    assert "|cache:topk:" in from_cache.stdout and "teacher:sha256:" in from_cache.stdout
    for tag, expected_steps in (("train_inner", 30), ("valid", 3)):
        one, other = logged(online.stdout, tag), logged(from_cache.stdout, tag)
        prefix = "valid_" if tag == "valid" else ""
        assert len(one) == len(other) >= expected_steps - 1
        for a, b in zip(one, other):
            for name in ("loss", "ce_loss", "nll_loss", "kd_loss", "agreement"):
                # fp16 knows a log-probability of -8 to 2^-8; agreement may change with a tie
                expected = pytest.approx(b[prefix + name], abs=0.7 if name == "agreement" else 6e-3)
                assert a[prefix + name] == expected, name
            assert prefix + "teacher_nll_loss" in a and prefix + "teacher_nll_loss" not in b
    weights = [tmp_path / name / "checkpoint_last.pt" for name in ("online", "cached")]
    assert_same_weights(*weights, tolerance=2e-3)


def test_student_is_an_ordinary_checkpoint_without_the_cache(workspace, few, tmp_path):
    run(*training(workspace.data, tmp_path, *cached(few), *SHORT))
    path = tmp_path / "checkpoint_last.pt"
    assert str(few) not in path.read_bytes().decode("latin-1")
    state = load(path)
    assert state["cfg"]["task"]["_name"] == "translation" and "teacher_cache" not in state["cfg"]["task"]
    assert "cache:topk:8:fp32" in state["task_state"]["kd_signature"]


def test_workers_update_freq_ranks_and_resume(workspace, few, tmp_path):
    """Shuffled batches; read in workers or not, on one rank or two, in one part or in two: the same."""
    same = [*cached(few, "--kd-alpha", 0.3), *SGD, "--disable-validation", "--update-epoch-batch-itr", "True"]
    same += ["--max-update", 30, "--save-interval-updates", 10]  # more than an epoch
    port = free_port()
    gloo = ["--distributed-no-spawn", "--distributed-world-size", 2, "--distributed-backend", "gloo"]
    gloo += ["--ddp-backend", "legacy_ddp", "--distributed-init-method", f"tcp://localhost:{port}"]
    freq = [*same, "--update-freq", 2]
    one, *_ = run_together(
        training(workspace.data, tmp_path / "one", *freq),
        training(workspace.data, tmp_path / "workers", *freq, "--num-workers", 2),
        *[training(workspace.data, tmp_path / "ranks", *same, *gloo, "--distributed-rank", r) for r in (0, 1)],
    )
    last = "checkpoint_last.pt"
    assert_same_weights(tmp_path / "one" / last, tmp_path / "workers" / last)
    assert_same_weights(tmp_path / "one" / last, tmp_path / "ranks" / last, tolerance=3e-6)
    start = next((tmp_path / "one").glob("checkpoint_*_20.pt"))
    run(*training(workspace.data, tmp_path / "resumed", *freq, "--restore-file", start))
    assert_same_weights(tmp_path / "one" / last, tmp_path / "resumed" / last)
    assert logged(one.stdout, "train_inner")[-1]["kd_loss"] < logged(one.stdout, "train_inner")[0]["kd_loss"]


def test_joined_repeated_and_divided_data_filtered_and_truncated_sentences(workspace, tmp_path):
    """train and train1 with --upsample-primary, then one folder after the other, as fairseq reads A:B."""
    second = tmp_path / "second"
    shutil.copytree(workspace.data, second)
    joined = tmp_path / "joined"
    shutil.copytree(workspace.data, joined)
    for lang in ("en", "de"):
        for end in ("bin", "idx"):
            shutil.copy(workspace.data / f"valid.en-de.{lang}.{end}", joined / f"train1.en-de.{lang}.{end}")
            shutil.copy(workspace.data / f"test.en-de.{lang}.{end}", second / f"train.en-de.{lang}.{end}")
    vocab = len((workspace.data / "dict.de.txt").read_text().splitlines()) + 4
    write(workspace, tmp_path / "cache", "--k", vocab, "--subset", "train,train1", data=joined)
    write(workspace, tmp_path / "cache", "--k", vocab, data=f"{workspace.data}:{second}")
    truncation = ["--truncate-source", "--max-source-positions", 5]
    write(workspace, tmp_path / "cache", "--k", vocab, *truncation)
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 4
    base = ["--kd-alpha", 0.3, *SGD, "--disable-validation", "--no-epoch-checkpoints"]
    cases = {
        "joined": (joined, ["--upsample-primary", 2, "--max-update", 20]),
        "joined, each once": (joined, ["--max-update", 20]),  # stock fairseq asks for --upsample-primary 1
        "divided": (f"{workspace.data}:{second}", ["--max-epoch", 3]),
        "truncated": (workspace.data, [*truncation, "--max-update", 20]),
        "filtered": (
            workspace.data,
            ["--max-source-positions", 9, "--max-target-positions", 9, "--max-update", 20]
            + ["--skip-invalid-size-inputs-valid-test", "--max-tokens-valid", 100]
            # with an older torch fairseq itself makes NaN of left-padded targets
            + (["--left-pad-target"] if TORCH_VERSION >= (2, 0) else []),
        ),
    }
    for name, (data, flags) in cases.items():
        one, other = run_together(
            training(data, tmp_path / name / "online", *workspace.distil(*base, *flags)),
            training(data, tmp_path / name / "cached", *cached(tmp_path / "cache", *base, *flags)),
        )
        steps = [logged(result.stdout, "train_inner") for result in (one, other)]
        assert len(steps[0]) == len(steps[1]) > 15
        for a, b in zip(*steps):
            assert a["kd_loss"] == pytest.approx(b["kd_loss"], abs=8e-3), name


def test_validation_without_answers_reports_cross_entropy_alone_and_says_so(workspace, few, tmp_path):
    flags = ["--max-update", 5, "--no-epoch-checkpoints"]
    output = run(*training(workspace.data, tmp_path, *cached(few), *flags)).stdout
    assert "valid: no answers in --teacher-cache" in output and "only the cross-entropy is reported" in output
    (valid,) = logged(output, "valid")
    assert "valid_nll_loss" in valid and "valid_kd_loss" not in valid
    assert "kd_loss" in logged(output, "train_inner")[0]


def test_draws_train_with_a_fused_head_and_selected_tokens(workspace, tmp_path):
    write(workspace, tmp_path / "cache", "--kind", "sampled", "--k", 12)
    flags = ["--kd-alpha", 0.3, "--kd-fused-head", "--kd-selection", "batch"]
    output = run(*training(workspace.data, tmp_path / "save", *cached(tmp_path / "cache", *flags), *SGD, *SHORT)).stdout
    steps = logged(output, "train_inner")
    assert len(steps) == 20 and "agreement" not in steps[0] and "|cache:sampled:12:" in output
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_jobs_workers_and_restarts_write_the_same_store(workspace, few, tmp_path):
    """Slurm's array, two processes, a job killed in the middle: byte by byte the store of one uninterrupted job."""
    flags = ["--k", 8, "--shard-tokens", 500]
    whole = store_files(few)
    assert sum(path.suffix == ".bin" for path in whole) >= 4
    command = ["kd-plugin", "cache", workspace.data, "--teacher-path", workspace.teacher, *flags]
    jobs = [*command, "--cache-dir", tmp_path / "jobs", "--num-shards", 3, "--shard-id"]
    run_together(*[[*jobs, i] for i in range(3)])
    assert store_files(tmp_path / "jobs") == whole
    write(workspace, tmp_path / "workers", *flags, "--workers", 2)
    assert store_files(tmp_path / "workers") == whole

    folder = tmp_path / "killed"
    process = start(*command, "--cache-dir", folder)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/shard-*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/shard-*.json")}
    assert kept
    write(workspace, folder, *flags)
    assert store_files(folder) == whole
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())


def test_an_ensemble_in_another_vocabulary_order_is_cached_as_its_mixture(workspace, tmp_path):
    other = tmp_path / "other.pt"
    make_checkpoint(other, workspace.data, *MODEL[2:], "--arch", "transformer", "-s", "en", "-t", "de", seed=3)
    shutil.copy(workspace.data / "dict.de.txt", tmp_path / "dict.de.txt")
    shutil.copy(workspace.data / "dict.en.txt", tmp_path / "dict.en.txt")
    same = ["--teacher-weights", "0.75,0.25"]
    both = f"{workspace.teacher}:{other}"
    run(
        "kd-plugin",
        "cache",
        workspace.data,
        "--teacher-path",
        both,
        *same,
        "--cache-dir",
        tmp_path / "cache",
        "--k",
        20,
    )
    flags = ["--kd-alpha", 0.3, *SGD, "--max-update", 3, "--no-epoch-checkpoints", "--disable-validation"]
    one, two = run_together(
        training(workspace.data, tmp_path / "online", *PLUGIN, "--teacher-path", both, *same, *flags),
        training(workspace.data, tmp_path / "cached", *cached(tmp_path / "cache", *flags)),
    )
    for a, b in zip(*(logged(result.stdout, "train_inner") for result in (one, two))):
        # twenty of some forty entries: a lower bound close by
        assert b["kd_loss"] <= a["kd_loss"] + 4e-3 and b["kd_loss"] > 0.7 * a["kd_loss"]
    assert "*0.75|" in two.stdout and "*0.25|" in two.stdout


def test_cache_info_describes_and_verifies(workspace, few, tmp_path):
    output = run("kd-plugin", "cache-info", few, "--verify").stdout
    tokens = Store(next(few.glob("*/manifest.json")).parent).manifest.tokens
    assert f"{tokens:,} target tokens" in output and "34 bytes per token" in output and "topk, k 8" in output
    assert f"verified: {tokens * 34:,} bytes" in output
    shutil.copytree(few, tmp_path / "damaged")
    shard = next((tmp_path / "damaged").glob("*/shard-00002.bin"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert run("kd-plugin", "cache-info", tmp_path / "damaged").stdout
    result = run("kd-plugin", "cache-info", tmp_path / "damaged", "--verify", check=False)
    assert result.returncode == 1 and f"kd-plugin: error: {shard} is damaged" in result.stdout


def test_sentences_too_long_for_the_teacher_are_kept_out_of_the_training(workspace, tmp_path):
    short = tmp_path / "short.pt"
    limits = ["--max-source-positions", 9, "--max-target-positions", 9]
    make_checkpoint(short, workspace.data, *MODEL[2:], "--arch", "transformer", "-s", "en", "-t", "de", *limits)
    for lang in ("en", "de"):
        shutil.copy(workspace.data / f"dict.{lang}.txt", tmp_path)
    run("kd-plugin", "cache", workspace.data, "--teacher-path", short, "--cache-dir", tmp_path / "cache", "--k", 4)
    manifest = json.loads(next((tmp_path / "cache").glob("*/manifest.json")).read_text())
    assert manifest["identity"]["max_positions"] == [9, 9] and manifest["captured_mass_histogram"][0] > 100
    flags = [*SGD, "--max-epoch", 1, "--no-epoch-checkpoints", "--disable-validation"]
    one, two = run_together(
        training(workspace.data, tmp_path / "online", *PLUGIN, "--teacher-path", short, *flags),
        training(workspace.data, tmp_path / "cached", *cached(tmp_path / "cache", *flags)),
    )
    assert len(logged(one.stdout, "train_inner")) == len(logged(two.stdout, "train_inner")) > 3
    assert "not finite" not in two.stdout


def test_ranks_without_a_batch_of_their_own(workspace, few, tmp_path):
    """Three batches for two ranks: one goes through a batch that fairseq keeps from validation, without answers."""
    same = ["--batch-size", 100, "--max-tokens", 4000, "--max-epoch", 2, "--no-epoch-checkpoints", *SGD]
    gloo = ["--distributed-no-spawn", "--distributed-world-size", 2, "--distributed-backend", "gloo"]
    gloo += ["--ddp-backend", "legacy_ddp"]
    for name, flags in (("all", []), ("batch", ["--kd-selection", "batch", "--kd-select-ratio", 0.5])):
        here = [*gloo, "--distributed-init-method", f"tcp://localhost:{free_port()}"]
        command = training(workspace.data, tmp_path / name, *cached(few, *flags), *same, *here)
        done, _ = run_together(*[[*command, "--distributed-rank", rank] for rank in (0, 1)])
        last = logged(done.stdout, "train")[-1]
        assert last["train_num_updates"] == 4 and 0 < last["train_kd_loss"] < 100
