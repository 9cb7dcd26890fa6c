"""Mixed precision and the teacher's place on a GPU; skipped where there is no CUDA."""

import numpy as np
import pytest
import torch

from kd_plugin.cache.store import open_stores
from tests.support import PLUGIN, assert_same_weights, load, logged, run, training

pytestmark = pytest.mark.gpu


def on_gpu(data, save_dir, *extra):
    """The same tiny training without --cpu."""
    command = [part for part in training(data, save_dir, *extra) if part != "--cpu"]
    return run(*command, env={"CUDA_VISIBLE_DEVICES": "0"}).stdout


@pytest.mark.parametrize("precision", [[], ["--fp16"], ["--amp"], ["--memory-efficient-fp16"]], ids=str)
@pytest.mark.parametrize("teacher_dtype", ["auto", "fp32", "bf16"])
def test_trains_in_every_precision(workspace, tmp_path, precision, teacher_dtype):
    flags = workspace.distil("--kd-alpha", 0.3, "--kd-temperature", 2, "--teacher-dtype", teacher_dtype)
    output = on_gpu(workspace.data, tmp_path, *flags, *precision, "--max-update", 60, "--fp16-init-scale", 4)
    steps = logged(output, "train_inner")
    assert steps[-1]["kd_loss"] < steps[0]["kd_loss"]
    for step in steps:
        assert step["loss"] == pytest.approx(0.3 * step["ce_loss"] + 0.7 * 4 * step["kd_loss"], abs=1e-2)


@pytest.mark.parametrize("precision", [[], ["--fp16"], ["--amp"]], ids=str)
def test_alpha_one_is_stock_bit_by_bit(workspace, tmp_path, precision):
    from tests.support import STOCK

    same = ["--max-update", 25, "--no-epoch-checkpoints", "--disable-validation", *precision]
    on_gpu(workspace.data, tmp_path / "stock", *STOCK, *same)
    on_gpu(workspace.data, tmp_path / "kd", *workspace.distil("--kd-alpha", 1), *same)
    assert_same_weights(tmp_path / "stock" / "checkpoint_last.pt", tmp_path / "kd" / "checkpoint_last.pt")


def test_gpu_and_cpu_agree(workspace, tmp_path):
    """Ten updates in fp32: another order of additions, the same training."""
    same = [*workspace.distil("--kd-alpha", 0.4), "--max-update", 10, "--dropout", 0, "--disable-validation"]
    on_gpu(workspace.data, tmp_path / "gpu", *same)
    run(*training(workspace.data, tmp_path / "cpu", *same))
    assert_same_weights(tmp_path / "gpu" / "checkpoint_last.pt", tmp_path / "cpu" / "checkpoint_last.pt", 1e-4)
    assert load(tmp_path / "gpu" / "checkpoint_last.pt")["model"]["decoder.embed_tokens.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype,tolerance", [("fp32", 2e-3), ("fp16", 5e-2)])
def test_cache_written_and_trained_from_on_a_gpu(workspace, tmp_path, dtype, tolerance):
    """The answers are a CPU's but for rounding; where two entries are as good as equal either may come first."""
    command = ["kd-plugin", "cache", workspace.data, "--teacher-path", workspace.teacher, "--k", 8]
    run(*command, "--cache-dir", tmp_path / "cpu", env={"CUDA_VISIBLE_DEVICES": ""})
    run(*command, "--cache-dir", tmp_path / "gpu", "--teacher-dtype", dtype, env={"CUDA_VISIBLE_DEVICES": "0"})
    stores = [open_stores(tmp_path / name)[0] for name in ("cpu", "gpu")]
    assert [store.identity.dtype for store in stores] == ["fp32", dtype]
    one, other = (store.read(np.arange(store.manifest.tokens)) for store in stores)
    np.testing.assert_allclose(np.exp(one.lprobs), np.exp(other.lprobs), rtol=0, atol=tolerance)
    np.testing.assert_allclose(np.exp(one.log_rest), np.exp(other.log_rest), rtol=0, atol=tolerance)
    flags = [*PLUGIN, "--teacher-cache", tmp_path / "gpu", "--kd-alpha", 0.3, "--fp16", "--fp16-init-scale", 4]
    steps = logged(on_gpu(workspace.data, tmp_path / "save", *flags, "--max-update", 60), "train_inner")
    assert steps[-1]["kd_loss"] < steps[0]["kd_loss"]
