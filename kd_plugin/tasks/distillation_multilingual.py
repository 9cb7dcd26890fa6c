"""The task of multilingual students: fairseq's translation_multi_simple_epoch with a teacher, or one per language."""

from argparse import ArgumentParser
from typing import Any, List

from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_utils import augment_dictionary, get_lang_tok
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import register_task
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from kd_plugin.checkpoints.student import MULTILINGUAL
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation import DistillationMixin, private_fields
from kd_plugin.tasks.teacher_flags import TeacherFlags
from kd_plugin.teachers.routing.ways import Pair, Tags

TASK_NAME = "distillation_translation_multi_simple_epoch"


@register_task(TASK_NAME)
class DistillationMultilingualTask(DistillationMixin, TranslationMultiSimpleEpochTask):
    """Multilingual translation with a criterion that may ask `task.teacher`."""

    stock = MULTILINGUAL
    private_fields = private_fields(TeacherFlags, FairseqDataclass)

    def __init__(self, args: Any, *more: Any):
        super().__init__(args, *more)
        self.cfg = args  # fairseq's older tasks only keep `args`

    @classmethod
    def add_args(cls, parser: Any) -> None:
        super().add_args(parser)
        if isinstance(parser, ArgumentParser):
            gen_parser_from_dataclass(parser, TeacherFlags())

    def _load_teacher(self) -> None:
        if self.cfg.teacher_cache:
            raise KDPluginError(
                f"--teacher-cache: a cache belongs to one language pair, so {TASK_NAME} does not take one. Remedy: "
                "--teacher-routing or --teacher-path"
            )
        super()._load_teacher()

    def language_pairs(self) -> List[Pair]:
        """Every pair of --lang-pairs and --extra-lang-pairs, with the tags of its sentences."""
        data = self.data_manager.get_data_paths_and_lang_pairs(getattr(self.args, "train_subset", "train"))
        return [
            self._pair(category, *(name.split("-") if "-" in name else (name, name)))
            for category, names in data[1].items()
            for name in names
        ]

    def language_tokens(self) -> List[str]:
        """The symbols after those of the dictionary file."""
        args, empty = self.args, Dictionary()
        size = len(empty)
        augment_dictionary(empty, self.langs, args.lang_tok_style, args.langtoks_specs, extra_data=args.extra_data)
        tokens: List[str] = empty.symbols[size:]
        return tokens

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """As fairseq's, and adds to the batches what the teacher needs."""
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        if self.teacher is None:
            return
        parts = self.data_manager.get_split_data_param_list(split, epoch)
        pairs = [self._pair(part["data_category"], part["src"], part["tgt"]) for part in parts]
        self.teacher.attach_pairs(self.datasets[split], pairs)

    def _pair(self, category: str, source: str, target: str) -> Pair:
        args = self.args
        of_source, of_target = args.langtoks.get(category, (None, None))
        read = () if not of_source else (_token(args, source if of_source.startswith("src") else target, of_source),)
        said = () if not of_target else (_token(args, target, of_target),)
        return Pair(source, target, Tags(read, said, bool(args.lang_tok_replacing_bos_eos)))


def _token(args: Any, language: str, spec: str) -> str:
    token: str = get_lang_tok(lang=language, lang_tok_style=args.lang_tok_style, spec=spec)
    return token
