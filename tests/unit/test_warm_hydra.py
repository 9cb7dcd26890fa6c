"""tests/warm_hydra.py: what fairseq's commands compose stays what hydra alone makes of it."""

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

FLAGS = [
    ["--lr", "[0.1,0.2]", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--share-all-embeddings"],
    ["--save-dir", "a folder/c=d, 'e'", "--lr-scheduler", "inverse_sqrt", "--criterion", "cross_entropy"],
]


def composed(flags):
    parser = options.get_training_parser()
    arguments = ["data", "--task", "translation", "--arch", "transformer", *flags]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


@pytest.mark.parametrize("flags", FLAGS)
def test_the_same_configuration_the_first_time_and_again(flags, monkeypatch):
    import hydra._internal.utils as utils
    from hydra.core.config_store import ConfigStore

    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser
    if not hasattr(parser.parse_rule, "__wrapped__"):
        pytest.skip("hydra is as it was")
    found = [composed(flags), composed(flags)]
    with monkeypatch.context() as patch:
        patch.setattr(parser, "parse_rule", parser.parse_rule.__wrapped__)
        patch.delattr(ConfigStore, "__deepcopy__")
        patch.setattr(utils.inspect, "stack", utils.inspect.__wrapped__.stack)
        expected = composed(flags)
    assert found == [expected, expected]
