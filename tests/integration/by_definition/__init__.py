"""A --user-dir whose criterion differentiates the definitions by autograd, instead of running the one-pass engine."""

import kd_plugin  # noqa: F401, registers task and criterion
from kd_plugin.losses.definition import row_terms
from kd_plugin.losses.engine.dispatch import StudentLogits


def loss(self, answer, target, objective, *, distilled=None, alone=None, alone_weight=1.0, teacher_rows=None):
    assert distilled is None and alone is None and teacher_rows is None
    terms = row_terms(self.logits.index_select(0, self.rows), answer.logits, target, objective)
    return objective.total(terms).sum(), terms.detach()


StudentLogits.loss = loss
print("BY DEFINITION")
