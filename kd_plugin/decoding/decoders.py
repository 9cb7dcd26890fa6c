"""Translating batches of sentences: fairseq's own search, or CTranslate2 on a converted model, behind one interface."""

import argparse
import functools
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from fairseq import utils
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.cache.data import dictionary_sha256
from kd_plugin.checkpoints.finite import check_range
from kd_plugin.checkpoints.language_tokens import source_token
from kd_plugin.checkpoints.loading import check_format, load_teacher, parse_overrides
from kd_plugin.checkpoints.opened import describe_checkpoint, read_description
from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.decoding.ctranslate2_search import Search
from kd_plugin.decoding.length_limit import length_limit
from kd_plugin.errors import KDPluginError, is_out_of_memory
from kd_plugin.files.atomic import sha256_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BEGINNING = "<s>"
PADDING = "<blank>"  # as CTranslate2's converter calls it
UNSAID_TOKENS = 1023  # the usual positions without end of sentence, where a CTranslate2 model does not say

Tokens = List[str]
Scored = Tuple[Tokens, float]  # symbols without end of sentence, and log-probability / length ** lenpen


class Settings(NamedTuple):
    """How to search: the names, defaults and meanings of fairseq-generate's flags."""

    beam: int = 5
    nbest: int = 1
    max_len_a: float = 0.0
    max_len_b: int = 200
    lenpen: float = 1.0
    unkpen: float = 0.0
    sampling: bool = False
    sampling_topk: int = -1
    sampling_topp: float = -1.0
    temperature: float = 1.0

    def check(self) -> None:
        """Whether the numbers, each within kd_plugin.cli.numbers' limits, go together.

        Raises:
            KDPluginError: names the flags
        """
        if self.nbest > self.beam:
            raise KDPluginError(
                f"--nbest {self.nbest}, --beam {self.beam}: a search gives no more than --beam translations. Remedy: a "
                "larger --beam, or a smaller --nbest"
            )
        if self.max_len_a + self.max_len_b < 1:
            raise KDPluginError(
                f"--max-len-a {self.max_len_a:g}, --max-len-b {self.max_len_b}: nothing can be that short. Remedy: "
                "--max-len-b of at least 1"
            )
        drawn = [name for name in ("sampling_topk", "sampling_topp") if getattr(self, name) > 0]
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in drawn)
        if drawn and not self.sampling:
            raise KDPluginError(f"{flags}: of no effect without --sampling. Remedy: add --sampling, or leave it out")
        if len(drawn) > 1:
            raise KDPluginError(f"{flags}: only one of them can be. Remedy: leave one out")

    def check_vocabulary(self, symbols: int) -> None:
        """Whether a model can search like this.

        Args:
            symbols: in its target dictionary

        Raises:
            KDPluginError: names the flag
        """
        # padding is never written: fairseq would make the beam smaller without a word
        for name, value, most in (("beam", self.beam, symbols - 1), ("sampling-topk", self.sampling_topk, symbols)):
            if value > most:
                raise KDPluginError(
                    f"--{name} {value}: the model's target dictionary has {symbols:,} symbols. Remedy: at most {most:,}"
                )


class Checkpoints(NamedTuple):
    """Checkpoints of one model or an ensemble, and the dictionaries that they were trained with."""

    paths: List[str]
    source_dictionary: Dictionary
    target_dictionary: Dictionary
    languages: Optional[List[str]]  # source, target; None: nobody says
    overrides: Dict[str, Any]
    source_token: Optional[str] = None  # with which the first one's source sentences begin: a language token

    def identity(self) -> List[str]:
        """All that decides what the models answer."""
        dictionaries = (self.source_dictionary, self.target_dictionary)
        return [*map(sha256_of, self.paths), *(dictionary_sha256(d.symbols) for d in dictionaries)]


def default_dtype(device: torch.device) -> str:
    return "float16" if device.type == "cuda" else "float32"


def add_model_arguments(parser: argparse.ArgumentParser, help_of_path: str) -> None:
    """What `checkpoints_of` reads."""
    parser.add_argument("--path", required=True, metavar="A.pt[:B.pt…]", help=help_of_path)
    parser.add_argument("--model-overrides", default="{}", metavar="JSON", help="as fairseq-generate's")
    parser.add_argument("--dict-dir", metavar="DIR", help="folder with the models' dictionaries, where elsewhere")
    parser.add_argument("-s", "--source-lang", metavar="LANG", help="the models'; default: the checkpoint's")
    parser.add_argument("-t", "--target-lang", metavar="LANG", help="the models'; default: the checkpoint's")


def checkpoints_of(args: argparse.Namespace, languages: Sequence[Optional[str]] = (None, None)) -> Checkpoints:
    """The models that the flags name.

    Args:
        languages: source and target, where the flags do not say; None: the checkpoint's
    """
    overrides = parse_overrides(args.model_overrides, "--model-overrides")
    if args.dict_dir is not None:
        overrides["data"] = args.dict_dir
    source_lang, target_lang = args.source_lang or languages[0], args.target_lang or languages[1]
    return open_checkpoints(args.path, overrides, source_lang, target_lang)


def open_checkpoints(
    path: str,
    overrides: Optional[Dict[str, Any]] = None,
    source_lang: Optional[str] = None,
    target_lang: Optional[str] = None,
) -> Checkpoints:
    """A.pt[:B.pt…] with the dictionaries of the first; arguments and errors as `opened.open_checkpoint`."""
    paths = split_model_paths(path)
    for member in paths[1:]:
        check_format(member, "the path of a .pt file of fairseq-train")
    described = describe_checkpoint(paths[0], overrides, source_lang, target_lang)
    source, target = described.dictionaries
    token = source_token(described.cfg.task, described.languages)
    return Checkpoints(paths, source, target, described.languages, overrides or {}, token)


class Ensemble(NamedTuple):
    """Models that share their dictionaries. Numbers of tokens are without end of sentence."""

    task: TranslationTask
    models: List[Any]
    parameters: int
    weight_bytes: int  # as the files store them
    max_source_tokens: int
    max_target_tokens: int


def load_ensemble(checkpoints: Checkpoints, device: torch.device, dtype: torch.dtype) -> Ensemble:
    """Build the checkpoints' models.

    Raises:
        KDPluginError: as `load_teacher`, or their dictionaries differ
    """
    source_lang, target_lang = checkpoints.languages or ["source", "target"]
    cfg = TranslationConfig(source_lang=source_lang, target_lang=target_lang)
    task = TranslationTask(cfg, checkpoints.source_dictionary, checkpoints.target_dictionary)
    members = [load_teacher(path, task, None, checkpoints.overrides) for path in checkpoints.paths]
    for member in members:
        if member.source_indices is not None or member.target_indices is not None:
            raise KDPluginError(
                f"{member.path}: its dictionary has another order than {members[0].path}'s, and fairseq's search "
                "averages models symbol by symbol. Remedy: an ensemble trained on the same data-bin"
            )
    if dtype != torch.float32:
        for member in members:
            check_range(member.model, dtype, member.path, "--compute-type float32, or bfloat16 on a GPU that has it")
    models = [member.model.to(device=device, dtype=dtype) for member in members]
    source, target = utils.resolve_max_positions(*(model.max_positions() for model in models))
    parameters, stored = (sum(getattr(m, name) for m in members) for name in ("parameters", "weight_bytes"))
    return Ensemble(task, models, parameters, stored, int(source) - 1, int(target) - 1)


class FairseqDecoder:
    """fairseq's SequenceGenerator with one model or an ensemble of any architecture.

    Args:
        dtype: of the weights on `device`
    """

    def __init__(
        self, checkpoints: Checkpoints, settings: Settings, device: torch.device, dtype: torch.dtype = torch.float32
    ):
        ensemble = load_ensemble(checkpoints, device, dtype)
        self._task = ensemble.task
        settings.check_vocabulary(len(checkpoints.target_dictionary))
        self._generator = self._task.build_generator(ensemble.models, GenerationConfig(**settings._asdict()))
        self._settings, self._device = settings, device
        self._max_target_tokens = ensemble.max_target_tokens
        self._paths, self._compute_type = ", ".join(checkpoints.paths), str(dtype).replace("torch.", "")
        self.max_source_tokens = ensemble.max_source_tokens
        self.source_symbols = frozenset(checkpoints.source_dictionary.symbols)
        self.target_symbols = frozenset(checkpoints.target_dictionary.symbols)
        self.parameters, self.weight_bytes = ensemble.parameters, ensemble.weight_bytes

    def start_draws(self, seed: int) -> None:
        """What --sampling draws from here on depends on the seed and on the batches, and on nothing before."""
        torch.manual_seed(seed)

    def length_limit(self, longest: int) -> int:
        """The most symbols of a translation in a batch whose longest sentence has so many; both without end."""
        return length_limit(self._settings.max_len_a, self._settings.max_len_b, longest, self._max_target_tokens)

    @torch.no_grad()
    def __call__(self, sentences: Sequence[Tokens]) -> List[List[Scored]]:
        """The nbest translations of each sentence, best first.

        Args:
            sentences: symbols, without end of sentence; one batch
        """
        self.length_limit(max(map(len, sentences), default=0))  # fairseq dies of one that is 0
        source, target = self._task.source_dictionary, self._task.target_dictionary
        # the longest first, as fairseq's own batches are: recurrent encoders take no other order
        order = sorted(range(len(sentences)), key=lambda place: -len(sentences[place]))
        rows = [torch.tensor([*map(source.index, sentences[place]), source.eos()]) for place in order]
        lengths = torch.tensor([len(row) for row in rows])
        src_tokens = data_utils.collate_tokens(rows, source.pad(), source.eos(), left_pad=True)
        net_input = {"src_tokens": src_tokens.to(self._device), "src_lengths": lengths.to(self._device)}
        try:
            found = self._generator.generate([], {"net_input": net_input})
        except AssertionError as error:  # fairseq takes what is NaN for impossible, and then nothing is left
            raise not_a_number(self._paths, self._compute_type) from error
        except RuntimeError as error:
            if "multinomial" not in str(error):
                raise
            # the likeliest symbol is one that cannot be written there, and beside it the others' mass is 0
            raise KDPluginError(
                f"--sampling: nothing is left to draw from at --temperature {self._settings.temperature:g} ({error}). "
                "Remedy: a higher --temperature, or a search without --sampling"
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


def _said(tokens: Tokens) -> Tokens:
    """Without the beginning of sentence, which a weak model may write and fairseq-generate never prints."""
    return [token for token in tokens if token != BEGINNING]


def not_a_number(path: str, compute_type: str) -> KDPluginError:
    return KDPluginError(
        f"{path}: its scores came out NaN or infinite in {compute_type}, and all its weights are finite. Remedy: "
        "--compute-type float32; where it is that already, another checkpoint: this one has weights that are too large"
    )


class CTranslate2Decoder:
    """A CTranslate2 model.

    Args:
        folder: of the converted model
        compute_type: CTranslate2's; "default" keeps the type of the stored weights
        threads: of a batch, 0: CTranslate2's own choice
        device_index: which of several GPUs
        checkpoints: what the model was converted from, if that is at hand: fairseq then searches for the few sentences
            that would take too long otherwise
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        device: str = "cpu",
        compute_type: str = "default",
        threads: int = 0,
        device_index: int = 0,
        checkpoints: Optional[Checkpoints] = None,
    ):
        from kd_plugin.checkpoints.ctranslate2_models import open_translator, vocabulary
        from kd_plugin.checkpoints.ctranslate2_weights import check_weights

        if settings.temperature != 1.0 and not settings.sampling:
            raise KDPluginError(
                f"--temperature {settings.temperature}: CTranslate2 has one for --sampling only. Remedy: leave it out, "
                "or --engine fairseq"
            )
        if settings.unkpen not in (0.0, float("inf")):
            raise KDPluginError(
                f"--unkpen {settings.unkpen}: CTranslate2 knows 0 and inf. Remedy: one of these, or --engine fairseq"
            )
        self._open = functools.partial(open_translator, folder, device, compute_type, threads, device_index)
        self._translator = self._open()
        check_weights(folder)
        self._settings = settings
        self._folder = folder
        self._checkpoints, self._device = checkpoints, torch.device(device, device_index)
        self._never = [PADDING, *(["<unk>"] if settings.unkpen == float("inf") else [])]
        self.use_vocabulary_map = False
        description = read_description(folder)
        # CTranslate2 itself goes on beyond the positions that the model has, and writes whatever comes
        self.max_source_tokens = int(description.get("max_source_tokens", UNSAID_TOKENS))
        # earlier versions of the plugin named one limit for both
        self._max_target_tokens = int(description.get("max_target_tokens", self.max_source_tokens))
        self.source_symbols = vocabulary(folder, "source")
        self.target_symbols = vocabulary(folder, "target")
        settings.check_vocabulary(len(self.target_symbols))

    @property
    def compute_type(self) -> str:
        """What the weights are where they are multiplied, which is not always what the files hold."""
        return str(self._translator.compute_type)

    def start_draws(self, seed: int) -> None:
        """As FairseqDecoder's."""
        if self._settings.sampling:
            import ctranslate2

            ctranslate2.set_random_seed(seed)
            self._translator = self._open()  # only threads that are started from now on see the seed

    def length_limit(self, longest: int) -> int:
        """As FairseqDecoder's."""
        return length_limit(self._settings.max_len_a, self._settings.max_len_b, longest, self._max_target_tokens)

    def __call__(self, sentences: Sequence[Tokens]) -> List[List[Scored]]:
        """As FairseqDecoder's."""
        longest = max(map(len, sentences), default=0)
        search, limit = self._search(self.use_vocabulary_map), self.length_limit(longest)
        try:
            answers = search(list(map(list, sentences)), limit)
            return [[(_said(tokens), score) for tokens, score in answer] for answer in answers]
        except FloatingPointError as error:
            raise not_a_number(str(self._folder), self.compute_type) from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # a foreign model says nothing of its positions
            raise KDPluginError(
                f"{self._folder}: CTranslate2 cannot translate a batch with sentences of up to {longest} symbols "
                f"({error}). Remedy: shorter sentences, or a smaller --max-len-b"
            ) from error

    def _search(self, use_vocabulary_map: bool) -> Search:
        settings = self._settings
        draws: Dict[str, Any] = {}
        if settings.sampling:
            draws = {"sampling_temperature": settings.temperature, "sampling_topk": max(0, settings.sampling_topk)}
            if settings.sampling_topp > 0:
                draws["sampling_topp"] = settings.sampling_topp
        forbidden = [symbol for symbol in self._never if symbol in self.target_symbols]
        options: Dict[str, Any] = {"use_vmap": use_vocabulary_map}
        if use_vocabulary_map:  # the symbols may not be in it
            options["disable_unk"], forbidden = "<unk>" in self._never, []
        of_fairseq = None if self._checkpoints is None else self._search_of_fairseq
        return Search(
            self._translator, settings.beam, settings.nbest, settings.lenpen, draws, forbidden, options, of_fairseq
        )

    @functools.cached_property
    def _fairseq(self) -> FairseqDecoder:
        assert self._checkpoints is not None
        return FairseqDecoder(self._checkpoints, self._settings._replace(nbest=self._settings.beam), self._device)

    def _search_of_fairseq(self, sentences: List[Tokens]) -> List[List[Scored]]:
        return self._fairseq(sentences)
