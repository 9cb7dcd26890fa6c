"""The decoder interface: a model that translates batches of sentences of symbols, and the settings of its search."""

from typing import AbstractSet, FrozenSet, List, NamedTuple, Optional, Protocol, Sequence, Tuple

from kd_plugin.errors import KDPluginError

ENGINES = ("fairseq", "ctranslate2")
UNKNOWN = "<unk>"  # in fairseq, and so in CTranslate2
DTYPE_NAMES = ("float32", "float16", "bfloat16")  # torch's; for --engine fairseq

Tokens = List[str]
Scored = Tuple[Tokens, float]  # symbols without end of sentence, and log-probability / length ** lenpen


class FolderOptions(NamedTuple):
    """How a model from another toolkit is told what to translate.

    model_source_lang, model_target_lang: the model's own language codes, such as NLLB's eng_Latn
    source_prefix, source_suffix, target_prefix: for a CTranslate2 folder, as in Around, separated by spaces
    """

    model_source_lang: Optional[str] = None
    model_target_lang: Optional[str] = None
    source_prefix: Optional[str] = None
    source_suffix: Optional[str] = None
    target_prefix: Optional[str] = None

    @property
    def given(self) -> List[str]:
        """The flags that are given."""
        return [f"--{name.replace('_', '-')}" for name, value in self._asdict().items() if value is not None]

    def refuse(self, reason: str) -> None:
        """Refuse all given flags."""
        if self.given:
            raise KDPluginError(f"{' and '.join(self.given)}: {reason}. Remedy: leave it out")


class ModelOptions(NamedTuple):
    """The checkpoints that the flags name; languages: None: the checkpoint's. user_dir: the models' code, to import"""

    path: str
    model_overrides: str = "{}"
    dict_dir: Optional[str] = None
    user_dir: Optional[str] = None
    source_lang: Optional[str] = None
    target_lang: Optional[str] = None

    def refuse_of_checkpoints(self) -> None:
        """Refuse flags that do not apply to a folder from another toolkit."""
        changed = self.model_overrides != "{}"
        for flag, given in (
            ("--dict-dir", self.dict_dir),
            ("--user-dir", self.user_dir),
            ("--model-overrides", changed),
        ):
            if given:
                raise KDPluginError(f"{flag}: is for fairseq checkpoints, not for {self.path}. Remedy: leave it out")


class Around(NamedTuple):
    """Symbols that a model expects around every sentence, such as language tokens or an end of sentence.

    target_prefix: symbols after the start symbol that every translation begins with but that are not part of it
    """

    source_prefix: Tuple[str, ...] = ()
    source_suffix: Tuple[str, ...] = ()
    target_prefix: Tuple[str, ...] = ()


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
        """Refuse numbers that do not fit together; each is within the limits of kd_plugin.cli.numbers."""
        if self.nbest > self.beam:
            raise KDPluginError(
                f"--nbest {self.nbest}, --beam {self.beam}: a search finds at most --beam translations. Remedy: use a "
                "larger --beam, or a smaller --nbest"
            )
        if self.max_len_a + self.max_len_b < 1:
            raise KDPluginError(
                f"--max-len-a {self.max_len_a:g}, --max-len-b {self.max_len_b}: no translation can be that short. "
                "Remedy: --max-len-b of at least 1"
            )
        drawn = [name for name in ("sampling_topk", "sampling_topp") if getattr(self, name) > 0]
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in drawn)
        if drawn and not self.sampling:
            raise KDPluginError(f"{flags}: of no effect without --sampling. Remedy: add --sampling, or leave it out")
        if len(drawn) > 1:
            raise KDPluginError(f"{flags}: only one of them is possible. Remedy: leave one out")

    def check_vocabulary(self, symbols: int) -> None:
        """Refuse values that a model cannot support. symbols: number of symbols in its target dictionary"""
        # padding is never written: fairseq would silently make the beam smaller
        for name, value, most in (("beam", self.beam, symbols - 1), ("sampling-topk", self.sampling_topk, symbols)):
            if value > most:
                raise KDPluginError(
                    f"--{name} {value}: the model's target dictionary has {symbols:,} symbols. Remedy: at most {most:,}"
                )


class Decoder(Protocol):
    """A model that is ready to translate. Numbers of tokens exclude the end of sentence.

    approximate: the sentences of the last batch for which a search by fairseq's rules would have taken too long; the
        scores of their translations are still the model's
    """

    approximate: AbstractSet[int]
    max_source_tokens: int
    source_symbols: FrozenSet[str]
    target_symbols: FrozenSet[str]

    def start_draws(self, seed: int) -> None:
        """Restart --sampling: draws from here on depend only on the seed and on the batches."""

    def length_limit(self, longest: int) -> int:
        """The most symbols of a translation, in a batch whose longest sentence has `longest`; both without the end."""

    def __call__(self, sentences: Sequence[Tokens]) -> List[List[Scored]]:
        """The nbest translations of each sentence, best first.

        Args:
            sentences: symbols, without end of sentence; one batch
        """


def not_a_number(path: str, compute_type: str) -> KDPluginError:
    return KDPluginError(
        f"{path}: its scores are NaN or infinite in {compute_type}, although all its weights are finite. Remedy: "
        "--compute-type float32; if that is already so, use another checkpoint: the weights of this one are too large"
    )
