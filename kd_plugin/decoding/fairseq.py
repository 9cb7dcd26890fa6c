"""Translating with fairseq's own search: checkpoints of any architecture, and ensembles of them."""

from typing import AbstractSet, Any, Dict, Hashable, Iterator, List, NamedTuple, Optional, Sequence

import torch
from fairseq import utils
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.cache.data import dictionary_sha256
from kd_plugin.checkpoints.finite import check_range
from kd_plugin.checkpoints.language_tokens import source_token
from kd_plugin.checkpoints.open import Checkpoint, key_of, open_beside, open_checkpoint
from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.checkpoints.read import check_format, model_sha256
from kd_plugin.checkpoints.user_code import FLAG, code_sha256, import_user_code
from kd_plugin.decoding.base import ModelOptions, Scored, Settings, Tokens, not_a_number
from kd_plugin.decoding.length_limit import length_limit
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.fairseq import fit

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Checkpoints:
    """One model or an ensemble: all use the dictionaries of the first one.

    Args:
        first: the checkpoint at the first path
        paths: all paths
    """

    def __init__(self, first: Checkpoint, paths: Sequence[str], overrides: Dict[str, Any]):
        self.paths, self.overrides = list(paths), overrides
        self.code: Optional[str] = None  # sha256 of the user code that they were opened with
        self.source_dictionary, self.target_dictionary = first.dictionaries
        self.languages = first.languages  # None: unknown
        # the language token that the first one's source sentences begin with
        self.source_token = source_token(first.cfg.task, first.languages)
        self.first = first
        self._opened: Dict[Hashable, Checkpoint] = {key_of(first.path, self._languages): first}

    @property
    def _languages(self) -> List[str]:
        return self.languages or ["source", "target"]

    def task(self) -> TranslationTask:
        """A task with the dictionaries, for the search."""
        source_lang, target_lang = self._languages
        cfg = TranslationConfig(source_lang=source_lang, target_lang=target_lang)
        return TranslationTask(cfg, self.source_dictionary, self.target_dictionary)

    def members(self) -> Iterator[Checkpoint]:
        """The checkpoints at all paths; those that were not open yet are opened now."""
        return open_beside(self.paths, self._languages, self.overrides, opened=self._opened)

    def let_go(self) -> None:
        """Free the weights, when other processes translate."""
        for member in self._opened.values():
            member.let_go()

    def identity(self) -> List[str]:
        """All that determines the models' answers."""
        dictionaries = (self.source_dictionary, self.target_dictionary)
        code = [self.code] if self.code is not None else []
        return [*map(model_sha256, self.paths), *(dictionary_sha256(d.symbols) for d in dictionaries), *code]


def open_checkpoints(
    path: str,
    overrides: Optional[Dict[str, Any]] = None,
    source_lang: Optional[str] = None,
    target_lang: Optional[str] = None,
) -> Checkpoints:
    """A.pt[:B.pt…] with the dictionaries of the first; arguments and errors as `open_checkpoint`."""
    paths = split_model_paths(path)
    for member in paths[1:]:
        check_format(member, "the path of a .pt file of fairseq-train")
    return Checkpoints(open_checkpoint(paths[0], overrides, source_lang, target_lang), paths, overrides or {})


def default_dtype(device: torch.device) -> str:
    return "float16" if device.type == "cuda" else "float32"


def checkpoints_of(options: ModelOptions, languages: Sequence[Optional[str]] = (None, None)) -> Checkpoints:
    """The models that the flags name.

    Args:
        languages: source and target, used if the flags do not name them; None: the checkpoint's
    """
    import_user_code(options.user_dir, FLAG)
    overrides = parse_overrides(options.model_overrides, "--model-overrides")
    if options.dict_dir is not None:
        overrides["data"] = options.dict_dir
    source_lang, target_lang = options.source_lang or languages[0], options.target_lang or languages[1]
    checkpoints = open_checkpoints(options.path, overrides, source_lang, target_lang)
    checkpoints.code = code_sha256(options.user_dir)
    return checkpoints


class Ensemble(NamedTuple):
    """Models that share their dictionaries. Numbers of tokens exclude the end of sentence."""

    task: TranslationTask
    models: List[Any]
    parameters: int
    weight_bytes: int  # as the files store them
    max_source_tokens: int
    max_target_tokens: int


def load_ensemble(checkpoints: Checkpoints, device: torch.device, dtype: torch.dtype) -> Ensemble:
    """Build the checkpoints' models.

    Raises:
        KDPluginError: as `open_beside` and `fit`, or their dictionaries differ
    """
    task = checkpoints.task()
    members, stored = [], 0
    for checkpoint in checkpoints.members():
        members.append(fit(checkpoint, task))
        stored += checkpoint.weight_bytes
    for member in members:
        if member.source_indices is not None or member.target_indices is not None:
            raise KDPluginError(
                f"{member.path}: its dictionary has another order than {members[0].path}'s, and fairseq's search "
                "averages models symbol by symbol. Remedy: use an ensemble trained on the same data-bin"
            )
    if dtype != torch.float32:
        for member in members:
            check_range(member.model, dtype, member.path, "--compute-type float32, or bfloat16 on a GPU that has it")
    models = [member.model.to(device=device, dtype=dtype) for member in members]
    source, target = utils.resolve_max_positions(*(model.max_positions() for model in models))
    parameters = sum(member.parameters for member in members)
    return Ensemble(task, models, parameters, stored, int(source) - 1, int(target) - 1)


class FairseqDecoder:
    """fairseq's SequenceGenerator with one model or an ensemble of any architecture.

    Args:
        dtype: the type of the weights on `device`
    """

    def __init__(
        self, checkpoints: Checkpoints, settings: Settings, device: torch.device, dtype: torch.dtype = torch.float32
    ):
        ensemble = load_ensemble(checkpoints, device, dtype)
        self._task = ensemble.task
        settings.check_vocabulary(len(checkpoints.target_dictionary))
        self._generator = self._task.build_generator(ensemble.models, GenerationConfig(**settings._asdict()))
        self._settings, self._device = settings, device
        self.approximate: AbstractSet[int] = frozenset()
        self._max_target_tokens = ensemble.max_target_tokens
        self._paths, self._compute_type = ", ".join(checkpoints.paths), str(dtype).replace("torch.", "")
        self.max_source_tokens = ensemble.max_source_tokens
        self.source_symbols = frozenset(checkpoints.source_dictionary.symbols)
        self.target_symbols = frozenset(checkpoints.target_dictionary.symbols)
        self.parameters, self.weight_bytes = ensemble.parameters, ensemble.weight_bytes

    def start_draws(self, seed: int) -> None:
        """As Decoder's."""
        torch.manual_seed(seed)

    def length_limit(self, longest: int) -> int:
        """As Decoder's."""
        return length_limit(self._settings.max_len_a, self._settings.max_len_b, longest, self._max_target_tokens)

    @torch.no_grad()
    def __call__(self, sentences: Sequence[Tokens]) -> List[List[Scored]]:
        """As Decoder's."""
        self.length_limit(max(map(len, sentences), default=0))  # fairseq would crash on a limit of 0
        source, target = self._task.source_dictionary, self._task.target_dictionary
        # longest first, as in fairseq's own batches: recurrent encoders require this order
        order = sorted(range(len(sentences)), key=lambda place: -len(sentences[place]))
        rows = [torch.tensor([*map(source.index, sentences[place]), source.eos()]) for place in order]
        lengths = torch.tensor([len(row) for row in rows])
        src_tokens = data_utils.collate_tokens(rows, source.pad(), source.eos(), left_pad=True)
        net_input = {"src_tokens": src_tokens.to(self._device), "src_lengths": lengths.to(self._device)}
        try:
            found = self._generator.generate([], {"net_input": net_input})
        except AssertionError as error:  # fairseq treats NaN as impossible, and then nothing is left
            raise not_a_number(self._paths, self._compute_type) from error
        except RuntimeError as error:
            if "multinomial" not in str(error):
                raise
            # the likeliest symbol is not allowed there, and the others' mass underflows to 0 beside it
            raise KDPluginError(
                f"--sampling: nothing is left to draw from at --temperature {self._settings.temperature:g} ({error}). "
                "Remedy: use a higher --temperature, or search without --sampling"
            ) from error
        answers: List[List[Scored]] = [[] for _ in sentences]
        for place, answer in zip(order, found):
            answers[place] = [self._scored(hypothesis, target) for hypothesis in answer[: self._settings.nbest]]
        return answers

    @staticmethod
    def _scored(hypothesis: Dict[str, Any], target: Dictionary) -> Scored:
        unsaid = (target.bos(), target.eos(), target.pad())  # fairseq-generate prints none of them
        indices = [index for index in hypothesis["tokens"].tolist() if index not in unsaid]
        return [target[index] for index in indices], float(hypothesis["score"])
