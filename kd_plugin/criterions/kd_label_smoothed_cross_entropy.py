"""The criterion: fairseq's label-smoothed cross-entropy with a teacher's distribution beside the reference.

    loss = alpha * CE(label-smoothed) + (1 - alpha) * temperature**2 * D(teacher || student)

Word-level knowledge distillation, Kim & Rush 2016 (https://aclanthology.org/D16-1139).
"""

import contextlib
import math

import torch
from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from torch.nn import Linear

from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig, check_flags
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.definition import AGREE, CE, KD, NLL, RANK, TEACHER_NLL, Objective
from kd_plugin.losses.engine import StudentLogits
from kd_plugin.losses.fused_head import StudentFeatures
from kd_plugin.losses.inplace import may_overwrite
from kd_plugin.losses.schedules import scheduled_value
from kd_plugin.losses.selection import SELECTIONS, gather_from_ranks
from kd_plugin.models import packed
from kd_plugin.teachers.online import gives_features, has_adaptive_softmax

CRITERION_NAME = "kd_label_smoothed_cross_entropy"

if CRITERION_NAME in CRITERION_REGISTRY:
    raise KDPluginError(
        f"the criterion {CRITERION_NAME} is registered already, by {CRITERION_REGISTRY[CRITERION_NAME].__module__}. "
        "Remedy: remove that plugin or fork; both cannot be used in one process"
    )


@register_criterion(CRITERION_NAME, dataclass=KDLabelSmoothedCrossEntropyCriterionConfig)
class KDLabelSmoothedCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    def __init__(
        self,
        task,
        sentence_avg,
        label_smoothing,
        ignore_prefix_size=0,
        report_accuracy=False,
        kd_alpha=0.5,
        kd_temperature=1.0,
        kd_divergence="forward_kl",
        kd_js_beta=0.5,
        kd_skew_lambda=0.1,
        kd_adaptive_mu=0.5,
        kd_top1_rank=0,
        kd_selection="all",
        kd_select_ratio=0.5,
        kd_queue_size=30000,
        kd_inplace="auto",
        kd_fused_head=False,
        kd_packed_student=False,
        kd_alpha_end=None,
        kd_temperature_end=None,
        kd_schedule="constant",
        kd_schedule_updates=0,
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.kd_alpha, self.kd_alpha_end = kd_alpha, kd_alpha_end
        self.kd_temperature, self.kd_temperature_end = kd_temperature, kd_temperature_end
        self.kd_divergence = str(kd_divergence)
        self.kd_parameters = {"js_beta": kd_js_beta, "skew_lambda": kd_skew_lambda, "adaptive_mu": kd_adaptive_mu}
        self.kd_top1_rank = kd_top1_rank
        self.kd_selection = str(kd_selection)
        self.kd_select_ratio, self.kd_queue_size = kd_select_ratio, kd_queue_size
        self.kd_inplace = str(kd_inplace)
        self.kd_fused_head, self.kd_packed_student = kd_fused_head, kd_packed_student
        self.kd_schedule = str(kd_schedule)
        self.kd_schedule_updates = kd_schedule_updates
        check_flags(self)
        self.selection = SELECTIONS[self.kd_selection](kd_select_ratio, kd_queue_size)

    def forward(self, model, sample, reduce=True):
        """Compute the loss for the given sample.

        Returns a tuple with three elements:
        1) the loss, a sum over target tokens
        2) the sample size, which is used as the denominator for the gradient
        3) logging outputs: sums over target tokens in nats, the same keys on every rank and batch
        """
        if not reduce:
            raise KDPluginError(f"{CRITERION_NAME} gives sums over tokens only (reduce=False was asked for)")
        if has_adaptive_softmax(model):
            raise KDPluginError(
                f"{CRITERION_NAME} needs logits over the whole vocabulary, an adaptive softmax gives none. Remedy: "
                "train the student without --adaptive-softmax-cutoff"
            )
        accuracy = {}
        if self.kd_fused_head or self.kd_packed_student:
            loss, terms = self.compute_token_loss(model, sample)
        else:
            net_output = model(**sample["net_input"])
            if self.report_accuracy:  # before the gradient is written over the logits
                n_correct, total = self.compute_accuracy(model, net_output, sample)
                accuracy = {"n_correct": utils.item(n_correct.data), "total": utils.item(total.data)}
            loss, terms = self.compute_kd_loss(model, net_output, sample)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            **terms,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
            **accuracy,
        }
        return loss, sample_size, logging_output

    def compute_kd_loss(self, model, net_output, sample):
        """The loss from a student's logits, and every term of it for the log."""
        alpha, _ = self.alpha_and_temperature()
        if self.teacher_of(sample) is None:
            loss, nll_loss = self.compute_loss(model, net_output, sample)
            return loss, {"nll_loss": nll_loss.data, "ce_loss": loss.data}

        rows, other_rows, target = self.counted_rows(sample)
        logits = net_output[0].reshape(-1, net_output[0].size(-1))
        if alpha == 1.0:
            # the terms are for the log alone, and the gradient is stock fairseq's, bit by bit
            stock_loss, _ = self.compute_loss(model, net_output, sample)
            logits = logits.detach()
        student = StudentLogits(logits, rows, other_rows, inplace=self.write_in_place(model, logits))
        loss, terms = self.compute_terms(student, target, rows, logits.dtype, sample)
        return (stock_loss if alpha == 1.0 else loss), terms

    def compute_token_loss(self, model, sample):
        """The loss where the student answers for the target tokens alone, and every term of it for the log: with
        --kd-packed-student, or with --kd-fused-head, which never makes logits of the whole batch."""
        if self.kd_fused_head:
            self._check_fused_head(model)
        rows, _, target = self.counted_rows(sample)
        how = {"features_only": True} if self.kd_fused_head else {}
        packing = contextlib.nullcontext()
        if self.kd_packed_student:
            self._check_packed_student(model, sample)
            packing = packed.packed_forward(packed.unwrapped(model), rows)
        with packing:
            output = model(**sample["net_input"], **how)[0]
        if not self.kd_packed_student:
            output = output.reshape(-1, output.size(-1)).index_select(0, rows)
        accuracy = {}
        if self.kd_fused_head:
            projection = model.decoder.output_projection
            student = StudentFeatures(output, projection.weight, projection.bias)
        else:
            if self.report_accuracy:
                n_correct = output.detach().argmax(dim=1).eq(target).sum()
                accuracy = {"n_correct": utils.item(n_correct), "total": target.numel()}
            every = torch.arange(rows.numel(), device=rows.device)
            student = StudentLogits(output, every, rows[:0], inplace=self.write_in_place(model, output))
        loss, terms = self.compute_terms(student, target, rows, output.dtype, sample)
        return loss, {**terms, **accuracy}

    def compute_terms(self, student, target, rows, dtype, sample):
        """The loss of the student's answers and the teacher's, and every term of it for the log.

        Args:
            student: StudentLogits or StudentFeatures for the rows
            target: (tokens,)
            rows: (tokens,) their positions in the flattened (batch * length) target
            dtype: in which the student computes
        """
        alpha, temperature = self.alpha_and_temperature()
        objective = Objective(alpha, temperature, self.eps, self.kd_divergence, self.kd_parameters, self.kd_top1_rank)
        teacher = self.teacher_of(sample)
        if teacher is None:
            loss, terms = student.loss(None, target, objective._replace(alpha=1.0))  # the cross-entropy, whole
            self._check_finite(loss, terms, rows, sample)
            sums = terms.sum(dim=0)
            return loss, {"nll_loss": sums[NLL], "ce_loss": sums[CE]}
        distilled = self.select(student, target) if alpha < 1.0 else None
        answer = teacher(sample, rows if distilled is None else rows[distilled], dtype)
        loss, terms = student.loss(answer, target, objective, distilled=distilled)
        self._check_finite(loss, terms, rows, sample)
        sums = terms.sum(dim=0)
        return loss, {
            "nll_loss": sums[NLL],
            "ce_loss": sums[CE],
            "kd_loss": sums[KD] + sums[RANK],
            "rank_loss": sums[RANK],
            **({"teacher_nll_loss": sums[TEACHER_NLL]} if answer.knows_target else {}),
            **({"n_agree": sums[AGREE]} if answer.knows_best else {}),
            "n_counted": rows.numel(),
            "n_distilled": rows.numel() if distilled is None else distilled.sum(),
            # fairseq sums the logs of all ranks and batches, so the mean needs its own count
            "kd_alpha": alpha,
            "kd_temperature": temperature,
            "n_batches": 1,
        }

    def select(self, student, target):
        """(tokens,) bool, the target tokens to distil; None: all, as always in validation."""
        if self.kd_selection == "all" or not self.training:
            return None
        nll = student.token_nll(target)
        # a rank without data of its own goes through another rank's batch: those tokens were counted there
        counted = nll[:0] if getattr(self.task, "is_dummy_batch", False) else nll
        group = distributed_utils.get_data_parallel_group()
        world_size = distributed_utils.get_world_size(group)
        return self.selection(
            nll, gather_from_ranks(counted, world_size, lambda values: distributed_utils.all_gather(values, group))
        )

    def write_in_place(self, model, logits):
        """Whether the gradient goes over the logits."""
        if not logits.requires_grad or self.kd_inplace == "off":
            return False
        return self.kd_inplace == "on" or may_overwrite(logits, model)

    @property
    def task_teacher(self):
        return getattr(self.task, "teacher", None)

    def teacher_of(self, sample):
        """The task's teacher if it can answer about a batch; None: there is none, or a cache without that split."""
        covers = getattr(self.task_teacher, "covers", None)
        return self.task_teacher if covers is None or covers(sample) else None

    def temperatures(self):
        """Where the temperature starts, and where a schedule takes it."""
        return [self.kd_temperature] + ([] if self.kd_temperature_end is None else [self.kd_temperature_end])

    def alpha_and_temperature(self):
        """The two values at the current update."""

        def now(start, end):
            if end is None:
                return start
            updates = getattr(self.task, "num_updates", 0)
            return scheduled_value(start, end, self.kd_schedule, updates, self.kd_schedule_updates)

        return now(self.kd_alpha, self.kd_alpha_end), now(self.kd_temperature, self.kd_temperature_end)

    def counted_rows(self, sample):
        """Positions in the flattened (batch * length) target that are no padding, the others, and the targets at the
        first, (tokens,)."""
        target = sample["target"]
        if self.ignore_prefix_size > 0:
            target = target.clone()
            target[:, : self.ignore_prefix_size] = self.padding_idx
        target = target.reshape(-1)
        counted = target.ne(self.padding_idx)
        rows = counted.nonzero(as_tuple=True)[0]
        return rows, (~counted).nonzero(as_tuple=True)[0], target[rows]

    def _check_fused_head(self, model):
        """Refuse --kd-fused-head where features and projection cannot be had one after the other."""
        decoder = getattr(model, "decoder", None)
        projection = getattr(decoder, "output_projection", None)
        reason = None
        if not gives_features(packed.unwrapped(model)):
            reason = "the student's architecture does not give features and logits one after the other, as fairseq's "
            reason += "transformers do"
        elif type(decoder).output_layer is not TransformerDecoderBase.output_layer or type(projection) is not Linear:
            reason = "the student's output projection is not a plain linear layer"
        elif getattr(model, "find_unused_parameters", False):
            reason = "--find-unused-parameters would take the projection for unused"
        elif projection.weight.dim() != 2:
            reason = "--ddp-backend fully_sharded keeps the projection in pieces"
        if reason is not None:
            raise KDPluginError(f"--kd-fused-head: {reason}. Remedy: train without --kd-fused-head")

    def _check_packed_student(self, model, sample):
        """Refuse --kd-packed-student where models/packed.py does not compute what the student's own forward does."""
        student = packed.unwrapped(model)
        reason, others = None, sorted(sample["net_input"].keys() - packed.INPUTS)
        if not packed.AVAILABLE:
            reason = f"torch {torch.__version__} is older than 2.2, whose attention it needs"
        elif isinstance(student, TransformerModelBase) and student.training and packed.has_hooks(student):
            reason = "the student has hooks, which must not miss the padding: of --quant-noise-pq, or those with which "
            reason += "fairseq looks for the cause of a FloatingPointError (then that error, above, is the one to mend)"
        elif not packed.can_pack(student):
            reason = "the student is not fairseq's transformer as it is, with encoder and decoder and nothing in or "
            reason += "around its layers (--checkpoint-activations, adapters)"
        elif others:
            reason = f"the batches have further inputs ({', '.join(others)})"
        if reason is not None:
            raise KDPluginError(f"--kd-packed-student: {reason}. Remedy: train without --kd-packed-student")

    def _check_finite(self, loss, terms, rows, sample):
        """Stop before the update where a term is NaN or infinite, naming term, side, update and sentences.

        terms: (tokens, N_TERMS); the logits themselves may be overwritten by now
        """
        if torch.isfinite(loss.detach() + terms[:, :TEACHER_NLL].sum()):
            return
        sums = terms.sum(dim=0)
        values = {"ce_loss": sums[CE], "kd_loss": sums[KD] + sums[RANK], "loss": loss}
        bad_terms = [name for name, value in values.items() if not torch.isfinite(value)]
        # a teacher may mask the target with -inf, which makes its nll infinite; nothing allowed makes it NaN
        of_teacher = torch.isnan(terms[:, TEACHER_NLL])
        of_student = ~torch.isfinite(terms[:, CE])
        bad = {"student": of_student, "teacher": of_teacher}
        bad_sides = [name for name, rows_of_side in bad.items() if rows_of_side.any()] or ["student"]
        positions = rows[~torch.isfinite(terms[:, :TEACHER_NLL]).all(dim=-1)]
        sentences = torch.unique(positions // sample["target"].size(1)) if len(positions) else slice(None)
        ids = sample["id"][sentences].tolist() if "id" in sample else "unknown"
        raise KDPluginError(
            f"{' and '.join(bad_terms) or 'the sum of the terms'} not finite at update "
            f"{getattr(self.task, 'num_updates', 0) + 1}: NaN or infinite {' and '.join(bad_sides)} logits, sample ids "
            f"{ids}. No weight was changed by this update. Remedy: a lower --lr or --clip-norm for the student; "
            "--teacher-dtype fp32 for the teacher; fp32 training to find the cause"
        )

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Aggregate logging outputs from data parallel training; losses in bits, as fairseq logs them."""
        super().reduce_metrics(logging_outputs)

        def total(key):
            # numbers, not tensors: every tensor in a meter takes 250 bytes of each checkpoint
            return utils.item(sum(log.get(key, 0) for log in logging_outputs))

        sample_size = total("sample_size")
        metrics.log_scalar("ce_loss", total("ce_loss") / sample_size / math.log(2), sample_size, round=3)
        n_batches = total("n_batches")
        if n_batches == 0:  # no teacher
            return
        metrics.log_scalar("kd_loss", total("kd_loss") / sample_size / math.log(2), sample_size, round=3)
        if total("rank_loss") > 0:
            metrics.log_scalar("rank_loss", total("rank_loss") / sample_size / math.log(2), sample_size, round=3)
        metrics.log_scalar("kd_alpha", total("kd_alpha") / n_batches, n_batches, round=4)
        metrics.log_scalar("kd_temperature", total("kd_temperature") / n_batches, n_batches, round=4)
        n_distilled, n_counted = total("n_distilled"), total("n_counted")
        if n_distilled > 0 and "teacher_nll_loss" in logging_outputs[0]:
            teacher_nll_loss = total("teacher_nll_loss") / n_distilled / math.log(2)
            metrics.log_scalar("teacher_nll_loss", teacher_nll_loss, n_distilled, round=3)
        if n_distilled > 0 and "n_agree" in logging_outputs[0]:
            metrics.log_scalar("agreement", total("n_agree") * 100.0 / n_distilled, n_distilled, round=2)
        if n_distilled < n_counted:
            metrics.log_scalar("kd_selected", n_distilled * 100.0 / n_counted, n_counted, round=2)
