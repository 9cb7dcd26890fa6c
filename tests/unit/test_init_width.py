"""`kd-plugin init`: widths, heads, feed-forward units and factorised outputs, on teachers whose reduction is known."""

import pytest
import torch

from kd_plugin.initialise.basis import basis_of, second_moments, sinusoids
from kd_plugin.initialise.statistics import _watching, statistics_of
from tests.support import load, make_checkpoint
from tests.unit.teachers_to_cut import (
    BEFORE,
    LEARNED,
    SHARED,
    SIZES,
    TIED,
    assert_same_logits,
    batch,
    init,
    logits,
    make_teacher,
    manifest,
    read_by_fairseq,
    save,
)

SMALL, WIDE = 8, 16
NO_POSITIONS = ["--no-token-positional-embeddings"]


def wide_space():
    """(16, 8): an orthonormal basis that takes the direction (1, …, 1) to (1, …, 1)."""
    generator = torch.Generator().manual_seed(0)
    small = torch.linalg.qr(torch.cat([torch.ones(SMALL, 1), torch.randn(SMALL, SMALL - 1, generator=generator)], 1))[0]
    wide = torch.linalg.qr(torch.cat([torch.ones(WIDE, 1), torch.randn(WIDE, SMALL - 1, generator=generator)], 1))[0]
    return wide @ small.T if bool(small[0, 0] * wide[0, 0] > 0) else -wide @ small.T


def disguised(small, wide):
    """Give a model of width 16 the weights of one of width 8, turned into a subspace of the wider one."""
    space, root = wide_space(), 2**0.5
    ours, theirs = small.state_dict(), wide.state_dict()
    heads = small.encoder.layers[0].self_attn.num_heads
    for name, weight in theirs.items():
        if name.endswith("_float_tensor") or name.endswith("version"):
            continue
        narrow = ours[name]
        if "embed_tokens" in name or "embed_positions" in name or "output_projection" in name:
            scale = 1.0
            if "embed_tokens" in name and not wide.cfg.no_scale_embedding:
                scale = (SMALL / WIDE) ** 0.5
            weight.copy_(narrow @ space.T * scale)
        elif "norm" in name:  # a state of the same length is normalised to a mean square of 1 over twice the numbers
            weight.copy_(torch.full_like(weight, float(narrow[0]) / root) if "weight" in name else space @ narrow)
        elif name.endswith(
            ("q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias")
        ):
            rows = narrow @ space.T if narrow.dim() == 2 else narrow
            parts = [torch.cat([part, torch.zeros_like(part)]) for part in rows.chunk(heads)]
            weight.copy_(torch.cat(parts) * (root if "q_proj" in name else 1.0))
        elif name.endswith("out_proj.weight"):
            parts = [torch.cat([part, torch.zeros_like(part)], 1) for part in narrow.chunk(heads, dim=1)]
            weight.copy_(space @ torch.cat(parts, 1))
        elif "fc1.weight" in name:
            weight.copy_(narrow @ space.T)
        elif "fc2" in name or name.endswith("out_proj.bias"):
            weight.copy_(space @ narrow)
        else:
            weight.copy_(narrow)


@pytest.mark.parametrize(
    "flags",
    [
        [*NO_POSITIONS],
        [*BEFORE, *NO_POSITIONS],
        [*TIED, *NO_POSITIONS, "--no-scale-embedding"],
        [*BEFORE, *SHARED, *NO_POSITIONS, "--no-scale-embedding"],
        [*LEARNED, "--max-source-positions", 40, "--max-target-positions", 40],
        [*BEFORE, *LEARNED, "--layernorm-embedding", "--max-source-positions", 40, "--max-target-positions", 40],
    ],
    ids=["post-norm", "pre-norm", "post-norm, tied", "pre-norm, shared", "learned", "pre-norm, learned, norm"],
)
def test_a_narrow_model_in_disguise_is_found_again(flags, tmp_path):
    path, wide = make_teacher(tmp_path / "teacher", *flags)
    narrow_sizes = [SMALL if value == WIDE else value for value in SIZES]
    small = make_checkpoint(tmp_path / "small.pt", tmp_path / "teacher", "-s", "en", "-t", "de", *narrow_sizes, *flags)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.full_like(parameter, 1.3) if "weight" in name else torch.randn_like(parameter))
    disguised(small, wide)
    save(path, wide)
    assert_same_logits(small, wide, batch(34), 1e-3)  # the disguise is one
    assert init(path, "--output", tmp_path / "student.pt", "--embed-dim", SMALL) == 0
    found = read_by_fairseq(tmp_path / "student.pt", tmp_path / "teacher")
    assert_same_logits(found, small, batch(34), 1e-3)
    kept = manifest(tmp_path / "student.pt")
    assert kept["kept_energy"]["encoder"] > 0.999999 and max(kept["errors"].values()) < 1e-3
    # and without the right basis it would not be
    with torch.no_grad():
        found.encoder.embed_tokens.weight.copy_(small.encoder.embed_tokens.weight)
    assert not torch.allclose(logits(found, batch(34)), logits(small, batch(34)), atol=1e-2)


@pytest.mark.parametrize("flags", [[*SHARED], [*BEFORE]], ids=["post-norm", "pre-norm"])
def test_units_and_heads_that_write_nothing_are_dropped_first(flags, tmp_path):
    path, teacher = make_teacher(tmp_path, *flags)
    with torch.no_grad():
        for side in (teacher.encoder, teacher.decoder):
            for layer in side.layers:
                layer.fc2.weight[:, 3:15] = 0
                for attention in (layer.self_attn, getattr(layer, "encoder_attn", None)):
                    if attention is not None:
                        attention.out_proj.weight[:, 4:12] = 0  # heads 1 and 2 of 0, 1, 2, 3
    save(path, teacher)
    assert init(path, "--output", tmp_path / "student.pt", "--ffn-dim", 12, "--heads", 2) == 0
    kept = manifest(tmp_path / "student.pt")
    assert all(heads == [0, 3] for heads in kept["heads"].values()) and len(kept["heads"]) == 9
    assert all(units == [0, 1, 2, *range(15, 24)] for units in kept["units"].values()) and len(kept["units"]) == 6
    student = read_by_fairseq(tmp_path / "student.pt", tmp_path)
    assert_same_logits(student, teacher, batch(34))
    # what was added to the remaining heads can learn: each product has one factor that is not zero
    attention = student.encoder.layers[0].self_attn
    student.requires_grad_(True)
    logits.__wrapped__(student, batch(34)).square().sum().backward()
    grown = attention.q_proj.weight.grad.abs().sum(1) + attention.k_proj.weight.grad.abs().sum(1)
    assert (grown > 0).all()


def test_narrower_heads_are_the_nearest_of_their_rank(tmp_path):
    """Against an SVD of the products in float64."""
    path, teacher = make_teacher(tmp_path, *SHARED, *NO_POSITIONS)
    assert init(path, "--output", tmp_path / "student.pt", "--embed-dim", 8) == 0
    error = manifest(tmp_path / "student.pt")["errors"]["encoder.layers.0.self_attn"]
    assert 0 < error < 1
    state = load(tmp_path / "student.pt")["model"]
    # the student's first layer reads the embeddings: in the teacher's coordinates these are E_S = E P 2**0.5
    basis = torch.linalg.lstsq(
        teacher.encoder.embed_tokens.weight.double(), state["encoder.embed_tokens.weight"].double() / 2**0.5
    ).solution
    torch.testing.assert_close(basis.T @ basis, torch.eye(8, dtype=torch.float64), atol=1e-5, rtol=0)
    prefix = "encoder.layers.0.self_attn."
    wide, narrow = ({n[len(prefix) :]: w.double() for n, w in s.items() if n.startswith(prefix)}
                    for s in (teacher.state_dict(), state))  # fmt: skip
    for head in range(4):
        rows, fewer = slice(4 * head, 4 * head + 4), slice(2 * head, 2 * head + 2)
        query = torch.cat([wide["q_proj.weight"][rows] @ basis, wide["q_proj.bias"][rows, None]], 1)
        key = wide["k_proj.weight"][rows] @ basis
        wanted = query.T @ key / 4**0.5
        left, values, right = torch.linalg.svd(wanted)
        nearest = left[:, :2] * values[:2] @ right[:2]
        found = torch.cat([narrow["q_proj.weight"][fewer], narrow["q_proj.bias"][fewer, None]], 1).T
        torch.testing.assert_close(found @ narrow["k_proj.weight"][fewer] / 2**0.5, nearest, atol=1e-5, rtol=1e-4)


def test_an_output_projection_of_low_rank_is_factorised_exactly(tmp_path, capsys):
    path, teacher = make_teacher(tmp_path)
    with torch.no_grad():
        left, values, right = torch.linalg.svd(teacher.decoder.output_projection.weight, full_matrices=False)
        teacher.decoder.output_projection.weight.copy_(left[:, :5] * values[:5] @ right[:5])
    save(path, teacher)
    assert init(path, "--output", tmp_path / "student.pt", "--decoder-output-dim", 5) == 0
    assert "--decoder-output-dim 5" in capsys.readouterr().out
    student = read_by_fairseq(tmp_path / "student.pt", tmp_path)
    assert student.decoder.project_out_dim.weight.shape == (5, 16)
    assert_same_logits(student, teacher, batch(34))
    assert init(tmp_path / "student.pt", "--output", tmp_path / "again.pt", "--decoder-output-dim", 3) == 0
    assert 0 < manifest(tmp_path / "again.pt")["errors"]["decoder.output_projection.weight"] < 1
    assert init(tmp_path / "student.pt", "--output", tmp_path / "no.pt", "--decoder-output-dim", 6) == 1
    assert "at most 5" in capsys.readouterr().err


def test_a_basis_is_orthonormal_keeps_the_mean_and_comes_near_the_students_positions():
    torch.manual_seed(1)
    rows = torch.randn(500, 32, dtype=torch.float64) * torch.logspace(0, -2, 32)
    moments = second_moments(rows) + second_moments(sinusoids(32, 60))
    turned, plain = (basis_of(moments, 12, sinusoidal) for sinusoidal in (True, False))
    for basis in (turned, plain):
        torch.testing.assert_close(basis.map.T @ basis.map, torch.eye(12, dtype=torch.float64))
        ones = basis.map.T @ torch.full((32,), 32**-0.5, dtype=torch.float64)
        torch.testing.assert_close(ones, torch.full((12,), 12**-0.5, dtype=torch.float64))
    # the same space, turned
    torch.testing.assert_close(turned.map @ turned.map.T, plain.map @ plain.map.T)
    distance = [float((sinusoids(32) @ basis.map - sinusoids(12)).norm()) for basis in (turned, plain)]
    assert distance[0] < 0.7 * distance[1]


def test_statistics_are_those_of_the_model_itself(tmp_path):
    """Heads add up to the attention's output; moments and units are those of what hooks see."""
    _, teacher = make_teacher(tmp_path, *SHARED)
    teacher.eval()
    net_input = batch(34)
    seen = {}
    real = {"encoder": net_input["src_tokens"].ne(1).T, "decoder": net_input["prev_output_tokens"].ne(1).T}
    hooks = []
    for side in ("encoder", "decoder"):
        layer = getattr(teacher, side).layers[1]
        for name in ("self_attn", "fc1", "final_layer_norm"):

            def hook(module, args, output, key=f"{side}.layers.1.{name}"):  # fmt: skip
                seen[key] = args, output

            hooks.append(getattr(layer, name).register_forward_hook(hook))
    with torch.no_grad():
        teacher(**net_input)
    for hook in hooks:
        hook.remove()
    found = statistics_of(teacher, [{"net_input": net_input}])
    for side in ("encoder", "decoder"):
        name = f"{side}.layers.1"
        bias = getattr(teacher, side).layers[1].self_attn.out_proj.bias
        written = (seen[f"{name}.self_attn"][1][0] - bias)[real[side]].double()
        torch.testing.assert_close(found.heads[f"{name}.self_attn"].mean.sum(0), written.mean(0), atol=1e-5, rtol=1e-4)
        active = seen[f"{name}.fc1"][1].relu()[real[side]].double()
        torch.testing.assert_close(found.units[name].size, active.square().mean(0).sqrt(), atol=1e-6, rtol=1e-5)
        entered = seen[f"{name}.final_layer_norm"][0][0][real[side]]
        n = torch.nn.functional.layer_norm(entered, (16,)).double()
        torch.testing.assert_close(found.norms[f"{name}.final_layer_norm"], n.T @ n / len(n), atol=1e-5, rtol=1e-4)
    assert all("forward" not in vars(module) for module in teacher.modules())
    with _watching(teacher):
        assert any("forward" in vars(module) for module in teacher.modules())
