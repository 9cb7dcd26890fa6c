"""Tables of text, and how numbers are written in them."""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

NONE = "–"
Cells = Dict[str, str]  # by the head of their column


class Best(str):
    """A cell in bold."""


class Table(NamedTuple):
    """groups: of columns, each with its cells of all rows. The first cell of a row names it."""

    name: str
    caption: str
    groups: Dict[str, List[Cells]]
    notes: Sequence[str] = ()

    def rows(self) -> List[Dict[Tuple[str, str], str]]:
        """Their cells, by group and head."""
        return [
            {(group, head): text for group, part in zip(self.groups, row) for head, text in part.items()}
            for row in zip(*self.groups.values())
        ]


def plain(value: Optional[float], decimals: int) -> str:
    """With thousands separated and a true minus sign."""
    return NONE if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def exact(value: float) -> str:
    """A logged value, with up to seven digits."""
    return f"{value:,.7g}"
