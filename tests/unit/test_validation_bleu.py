"""--eval-bleu while a student's translations are empty: fairseq logs nothing then, and dies of KeyError: 'bleu'."""

import pytest
import sacrebleu
from fairseq.logging import metrics
from fairseq.tasks.translation import EVAL_BLEU_ORDER, TranslationConfig, TranslationTask

from kd_plugin.tasks.validation_bleu import log_bleu_of_nothing

REFERENCES = ["a man sits on a chair .", "two dogs run over the green grass .", "a girl reads ."]


class Criterion:
    """A criterion that logs nothing itself."""

    @staticmethod
    def reduce_metrics(logging_outputs):
        pass


def logs_of(translations, references):
    """What fairseq's valid_step logs of a batch."""
    bleu = sacrebleu.corpus_bleu(translations, [references])
    logs = {"ntokens": 1, "nsentences": 1, "_bleu_sys_len": bleu.sys_len, "_bleu_ref_len": bleu.ref_len}
    for order in range(EVAL_BLEU_ORDER):
        logs[f"_bleu_counts_{order}"], logs[f"_bleu_totals_{order}"] = bleu.counts[order], bleu.totals[order]
    return logs


def validated(*batches):
    """BLEU over batches, each with the translations of the next references; each is a step of its own."""
    task = TranslationTask.__new__(TranslationTask)
    task.cfg = TranslationConfig(eval_bleu=True)
    done = 0
    with metrics.aggregate(new_root=True) as meters:
        for batch in batches:
            logs = [logs_of(batch, REFERENCES[done : done + len(batch)])]
            done += len(batch)
            task.reduce_metrics(logs, Criterion())
            log_bleu_of_nothing(logs)
    return meters.get_smoothed_values().get("bleu")


def test_if_all_are_empty_it_is_0():
    assert validated(["", ""], [""]) == 0
    assert validated(["", "", ""]) == 0


@pytest.mark.parametrize("nothing_first", [True, False])
def test_empty_batches_count_as_in_the_whole(nothing_first):
    said = ["a man sits on a chair .", "two dogs run over green grass ."]
    batches = ([""], said[1:] + ["a girl reads"]) if nothing_first else (said, [""])
    whole = [line for batch in batches for line in batch]
    assert validated(*batches) == pytest.approx(sacrebleu.corpus_bleu(whole, [REFERENCES]).score, abs=0.006)


def test_other_steps_are_left_alone():
    said = ["a man sits on a chair .", "two dogs run over green grass .", "a girl reads"]
    assert validated(said) == pytest.approx(sacrebleu.corpus_bleu(said, [REFERENCES]).score, abs=0.006)
    with metrics.aggregate(new_root=True) as meters:
        log_bleu_of_nothing([{"ntokens": 3}])
    assert not meters.get_smoothed_values()
