"""The terms that the loss may have beside its cross-entropy and divergence (`tokens`)."""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type

from kd_plugin.distill.terms.base import Term
from kd_plugin.distill.terms.tokens import TokensTerm


class TermKind(NamedTuple):
    """A row of TERMS.

    term:  the class
    asked: whether the criterion's flags ask for it
    flags: a dataclass with flags of its own, which the criterion gets
    """

    term: Type[Term]
    asked: Callable[[Any], bool] = lambda cfg: True
    flags: Optional[type] = None


TERMS: Dict[str, TermKind] = {
    "tokens": TermKind(TokensTerm),
}


def asked_terms(cfg: Any) -> List[Term]:
    """The terms that the criterion's flags ask for, `tokens` first."""
    return [kind.term(cfg) for kind in TERMS.values() if kind.asked(cfg)]


def own_flags() -> Tuple[type, ...]:
    """Dataclasses with the flags of single terms."""
    return tuple(kind.flags for kind in TERMS.values() if kind.flags is not None)
