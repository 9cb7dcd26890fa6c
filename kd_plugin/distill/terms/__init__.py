"""The terms of the loss: `tokens` (cross-entropy and divergence), and optional further ones."""

from dataclasses import fields
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type

from kd_plugin.distill.terms.attention import Attention, AttentionFlags
from kd_plugin.distill.terms.base import Term
from kd_plugin.distill.terms.hidden import Hidden, HiddenFlags
from kd_plugin.distill.terms.rdrop import RDrop, RDropFlags
from kd_plugin.distill.terms.tokens import TokensTerm
from kd_plugin.errors import KDPluginError


class TermKind(NamedTuple):
    """A row of TERMS.

    term:  the class
    asked: whether the criterion's flags ask for it
    flags: a dataclass with its own flags, which are added to the criterion's
    ends:  those of its flags that name the last value of a schedule
    """

    term: Type[Term]
    asked: Callable[[Any], bool] = lambda cfg: True
    flags: Optional[type] = None
    ends: Tuple[str, ...] = ()


def _has_weight(cfg: Any, name: str) -> bool:
    """Whether a term's weight, or the last one, is not 0."""
    return bool(getattr(cfg, f"{name}_weight") != 0 or getattr(cfg, f"{name}_weight_end"))


# in the order in which they are computed; `tokens` may overwrite the logits, so terms that read them come first
TERMS: Dict[str, TermKind] = {
    "rdrop": TermKind(RDrop, lambda cfg: cfg.kd_rdrop != 0, RDropFlags),
    "tokens": TermKind(TokensTerm),
    "hidden": TermKind(
        Hidden,
        lambda cfg: str(cfg.kd_hidden) != "off" and _has_weight(cfg, "kd_hidden"),
        HiddenFlags,
        ("kd_hidden_weight_end",),
    ),
    "attention": TermKind(
        Attention,
        lambda cfg: str(cfg.kd_attention) != "off" and _has_weight(cfg, "kd_attention"),
        AttentionFlags,
        ("kd_attention_weight_end",),
    ),
}


def asked_terms(cfg: Any, main: Type[TokensTerm] = TokensTerm) -> List[Term]:
    """The terms that the criterion's flags ask for, in the order of TERMS. main: takes the place of TokensTerm"""
    asked = [kind.term for kind in TERMS.values() if kind.asked(cfg)]
    return [(main if term is TokensTerm else term)(cfg) for term in asked]


def check_unused(cfg: Any) -> None:
    """Raises KDPluginError if a flag of --kd-hidden or --kd-attention is given without them."""
    off = {"kd_hidden": HiddenFlags, "kd_attention": AttentionFlags}
    off = {name: flags for name, flags in off.items() if str(getattr(cfg, name)) == "off"}
    for name, flags in off.items():
        for field in fields(flags):
            shared = field.name == "kd_projection_rate"  # by both
            if getattr(cfg, field.name) != field.default and (not shared or len(off) == 2):
                needed = "--kd-hidden or --kd-attention" if shared else f"--{name.replace('_', '-')}"
                raise KDPluginError(
                    f"--{field.name.replace('_', '-')} has no effect without {needed}. Remedy: add or drop one"
                )


def own_ends() -> Tuple[str, ...]:
    """The flags of terms that name the last value of a schedule."""
    return tuple(end for kind in TERMS.values() for end in kind.ends)


def own_flags() -> Tuple[type, ...]:
    """The terms' own dataclasses of flags."""
    return tuple(kind.flags for kind in TERMS.values() if kind.flags is not None)
