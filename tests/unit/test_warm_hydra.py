"""tests/warm_hydra.py: what fairseq's commands compose stays what hydra alone makes of it."""

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

FLAGS = [
    ["--lr", "[0.1,0.2]", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--share-all-embeddings"],
    ["--save-dir", "a folder/c=d, 'e'", "--lr-scheduler", "inverse_sqrt", "--criterion", "cross_entropy"],
    # the groups of the first two, with other values
    ["--lr", "[0.3]", "--optimizer", "adam", "--adam-betas", "(0.8, 0.9)", "--max-epoch", "3", "--eval-bleu"],
    ["--save-dir", "${common.seed}", "--lr-scheduler", "inverse_sqrt", "--criterion", "cross_entropy", "--fp16"],
]


def composed(flags):
    parser = options.get_training_parser()
    arguments = ["data", "--task", "translation", "--arch", "transformer", *flags]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


@pytest.mark.parametrize("flags", FLAGS)
def test_the_same_configuration_the_first_time_and_again(flags, monkeypatch):
    import hydra
    from hydra._internal import utils
    from hydra.core.config_store import ConfigStore

    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser
    if not hasattr(parser.parse_rule, "__wrapped__"):
        pytest.skip("hydra is as it was")
    found = [composed(flags), composed(flags)]
    found[1].common.seed = 1  # nobody else's
    found[1] = composed(flags)
    with monkeypatch.context() as patch:
        patch.setattr(hydra, "compose", hydra.compose.__wrapped__)
        patch.setattr(parser, "parse_rule", parser.parse_rule.__wrapped__)
        patch.delattr(ConfigStore, "__deepcopy__")
        patch.setattr(utils.inspect, "stack", utils.inspect.__wrapped__.stack)
        expected = composed(flags)
    assert found == [expected, expected]


def test_a_wrong_value_is_refused_as_by_hydra():
    import hydra

    errors = pytest.importorskip("hydra.errors")
    if not hasattr(hydra, "compose"):
        pytest.skip("hydra is as it was")
    with hydra.initialize(config_path=None):
        for _ in range(2):
            hydra.compose("config", overrides=["common.seed=2"])
            with pytest.raises(errors.ConfigCompositionException, match="common.seed=many"):
                hydra.compose("config", overrides=["common.seed=many"])


def test_what_is_registered_meanwhile_is_composed(monkeypatch):
    """As tasks and criterions of a --user-dir are."""
    from dataclasses import dataclass

    from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY, register_criterion
    from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig

    flags = ["--criterion", "cross_entropy"]
    before = composed(flags)

    @dataclass
    class Configuration(CrossEntropyCriterionConfig):
        sharpness: float = 0.5

    try:
        register_criterion("test_warm_hydra", dataclass=Configuration)(type("Own", (CrossEntropyCriterion,), {}))
        found = composed(["--criterion", "test_warm_hydra", "--sharpness", "0.25"])
        assert found.criterion.sharpness == 0.25 and composed(flags) == before
    finally:
        CRITERION_REGISTRY.pop("test_warm_hydra", None)
        CRITERION_DATACLASS_REGISTRY.pop("test_warm_hydra", None)
