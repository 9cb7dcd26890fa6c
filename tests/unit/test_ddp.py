"""Two passes, hooks and projections inside PyTorch's DistributedDataParallel, which fairseq's --ddp-backend pytorch_ddp
wraps around the student and, if it has parameters, around the criterion."""

import copy

import pytest
import torch
from fairseq.distributed import ModuleProxyWrapper
from torch.nn.parallel import DistributedDataParallel

from tests.unit.inner_models import TWO_LAYERS, WIDER, batch, criterion_for, model_of

ALL = dict(kd_hidden="factor", kd_factor_updates=2, kd_factor_dim=6, kd_attention="both", kd_rdrop=1.0)


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone: the reducer still waits for every parameter."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kinds", [{}, dict(kd_packed_student=True, kd_fused_head=True)], ids=["plain", "both"])
def test_every_parameter_has_a_gradient_in_every_update(kinds, group, dictionaries, tmp_path):
    """Across the phases of the auto-encoder; the gradients are those without wrappers."""
    pytest.importorskip("torch", minversion="2.2")
    student = model_of(tmp_path, dictionaries, *TWO_LAYERS, dropout=0.2).train()
    teacher = model_of(tmp_path, dictionaries, *WIDER, seed=2)
    criterion = criterion_for(student, teacher, **ALL, **kinds)
    twin, twin_criterion = copy.deepcopy(student), criterion_for(student, teacher, **ALL, **kinds)
    twin_criterion.load_state_dict(criterion.state_dict())
    wrapped = ModuleProxyWrapper(DistributedDataParallel(student))
    wrapped_criterion = ModuleProxyWrapper(DistributedDataParallel(criterion))
    for update in range(4):  # a parameter without a gradient would stop the next one
        for each in (criterion, twin_criterion):
            each.task.num_updates = update
        gradients = []
        for model, loss_of in ((wrapped, wrapped_criterion), (twin, twin_criterion)):
            torch.manual_seed(update)
            model.zero_grad()
            loss_of.zero_grad()
            loss_of(model, batch())[0].backward()
            named = [*model.named_parameters(), *loss_of.named_parameters()]
            gradients.append({name.replace("module.", ""): parameter.grad for name, parameter in named})
        found, expected = gradients
        assert found.keys() == expected.keys() and any("hidden" in name for name in found)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
