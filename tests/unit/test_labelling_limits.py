"""Labelling teachers without a limit of length, and flags that contradict the data."""

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from kd_plugin.cli import main
from kd_plugin.errors import KDPluginError
from tests.labelled import CLASSES, TAGS, Built, make_folders, save_checkpoint
from tests.reference import loss64
from tests.unit.test_labelling import DISTIL, logits_of

SIZES = {
    "text_cnn": ["--encoder-embed-dim", 8, "--filters", 6],
    "bilstm": ["--encoder-embed-dim", 8, "--encoder-hidden-size", 6],
    "bag_of_embeddings": ["--encoder-embed-dim", 8],
}
EVERY = [("text_cnn", "classes"), ("bilstm", "classes"), ("bag_of_embeddings", "classes")]
EVERY += [("text_cnn", "tags"), ("bilstm", "tags")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("limits")
    make_folders(root)
    return root


def made(data, arch, *flags, seed=3):
    """As tests.labelled.build, for a simple student, which reads no symbol before a sentence."""
    kind = CLASSES if data.name == "classes" else TAGS
    line = list(map(str, [data, "--cpu", *kind, "--arch", arch, *SIZES[arch], "--dropout", 0, *flags]))
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), line))
    torch.manual_seed(seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    return Built(task, model, task.build_criterion(cfg.criterion))


def simple(root, arch, kind):
    """The path of an untrained checkpoint."""
    path = root / f"{arch}-{kind}.pt"
    return path if path.exists() else save_checkpoint(path, made(root / kind, arch, "--kd-alpha", 1), root / kind)


def cache(root, kind, path, folder, *flags):
    task = "sentence_prediction" if kind == "classes" else "sequence_tagging"
    command = ["cache", root / kind, "--task", task, "--teacher-path", path, "--cache-dir", folder, *flags]
    return main(list(map(str, command)))


@pytest.mark.parametrize("arch, kind", EVERY)
def test_a_teacher_without_a_limit_teaches_beside_the_student_and_from_a_cache(root, tmp_path, arch, kind):
    """Both losses are that of the definition, on the teacher's own logits."""
    path = simple(root, arch, kind)
    assert cache(root, kind, path, tmp_path) == 0
    losses = []
    for source in (["--teacher-path", path], ["--teacher-cache", tmp_path]):
        built = made(root / kind, "text_cnn", *DISTIL, *source, seed=4)
        batch = built.batch(range(8))
        losses.append(built.loss(batch)[0].double())
        if source[0] == "--teacher-path":
            head = built.task.labelling.head
            student, teacher = (logits_of(m, batch, head) for m in (built.model, built.task.teacher.members[0].model))
            target = batch["target"].reshape(-1)
            rows = target >= 0
            expected, *_, kd = loss64(student[rows], teacher[rows], target[rows], 0.3, 2.0, 0.0)
    assert float(kd) > 1e-3
    for loss in losses:
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flag", ["--init-token", "--separator-token"])
def test_symbols_that_the_dictionary_does_not_have_are_refused(root, tmp_path, capsys, flag):
    path = simple(root, "text_cnn", "classes")
    assert cache(root, "classes", path, tmp_path / "cache", flag, 99999) == 1
    said = capsys.readouterr().err
    assert f"{flag} 99999: the dictionary of {root / 'classes'} has only the indices 0 to" in said and "Remedy" in said
    assert not (tmp_path / "cache").exists()
    with pytest.raises(KDPluginError, match=f"{flag} 99999: .*Remedy"):
        made(root / "classes", "text_cnn", "--kd-alpha", 0, "--teacher-path", path, flag, 99999)


def test_a_number_of_labels_that_the_data_do_not_have_is_refused(root, tmp_path, capsys):
    path = simple(root, "text_cnn", "tags")
    assert cache(root, "tags", path, tmp_path / "cache", "--num-classes", 5) == 1
    said = capsys.readouterr().err
    assert "--num-classes 5: " in said and "has 3 labels ('O'" in said and "Remedy" in said
    assert not (tmp_path / "cache").exists()
    assert cache(root, "tags", path, tmp_path / "cache", "--num-classes", 3, "--subset", "train, valid") == 0
    assert sorted(one.name.partition("-")[0] for one in (tmp_path / "cache").iterdir()) == ["train", "valid"]


@pytest.mark.parametrize("inside", ["input0", "label/cache"])
def test_a_cache_is_not_written_between_the_data(root, capsys, inside):
    path = simple(root, "text_cnn", "classes")
    before = sorted(root.rglob("*"))
    assert cache(root, "classes", path, root / "classes" / inside) == 1
    said = capsys.readouterr().err
    assert f"--cache-dir {root / 'classes' / inside}: " in said and "Remedy" in said
    assert sorted(root.rglob("*")) == before


def test_teachers_of_different_tasks_or_labels_are_no_ensemble(root, tmp_path, capsys):
    """Each is fine by itself."""
    one, other = simple(root, "text_cnn", "classes"), simple(root, "text_cnn", "tags")
    assert main(["doctor", "--teacher", str(one)]) == 0
    capsys.readouterr()
    assert main(["doctor", "--teacher", f"{one}:{other}"]) == 1
    said = capsys.readouterr().out
    assert "FAIL" in said and "labels words, but" in said and "to distil from it" not in said
