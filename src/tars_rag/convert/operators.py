"""What the toolkit made of a graph: read from the log of its build.

The compiled operators stand in a table of the log, each with the unit that runs it::

    D RKNN: [18:17:22.408] 6    exNorm    FLOAT16  NPU    (1,384,1,64),...  (1,384,1,64)  0/0/0 ...
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from tars_rag.runtimes.npu.manifest import Operators

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_TITLE: Final = "Network Layer Information Table"
_ROW: Final = re.compile(
    r"^D RKNN: \[[\d:.]+\] \d+ +(?P<kind>\w+) +(?P<type>\w+) +(?P<unit>[CNG]PU) +\S+ "
    r"+(?P<out>\S+) +[\d/]+ ",
    re.MULTILINE,
)
# A logit: whatever is done to it takes the CPU no time.
_ONE_NUMBER: Final = re.compile(r"\(1(,1)*\)")
# Where data enters and leaves the runtime; they compute nothing.
_ENDS: Final = frozenset({"InputOperator", "OutputOperator"})
# One operator each of the chip that stands for a dozen of the graph.
_ATTENTION: Final = "exSDPAttention"
_NORMS: Final = ("exNorm", "exLayerNorm", "LayerNormalization")
_GELU: Final = "Gelu"


def compiled_operators(log: str, layers: int, *, split_attention: bool) -> Operators | None:
    """The operators of a compiled graph; None if the log has no table of them.

    Args:
        log: What the toolkit printed.
        layers: Of the encoder.
        split_attention: Whether attention was to be left in parts.
    """
    table = _COLOUR.sub("", log).rpartition(_TITLE)[2]
    rows = [row.group("kind", "type", "unit", "out") for row in _ROW.finditer(table)]
    if not rows:
        return None
    kinds = Counter(kind for kind, _, _, _ in rows if kind not in _ENDS)
    return Operators(
        counts=dict(sorted(kinds.items())),
        on_cpu=tuple(
            f"{kind} ({number})" for kind, number, unit, out in rows
            if unit != "NPU" and kind not in _ENDS and not _ONE_NUMBER.fullmatch(out)
        ),
        integer_inputs=sum(
            kind == "InputOperator" and number.startswith(("INT", "UINT"))
            for kind, number, _, _ in rows
        ),
        not_fused=_not_fused(kinds, layers, split_attention=split_attention),
    )  # fmt: skip


def _not_fused(kinds: Counter[str], layers: int, *, split_attention: bool) -> tuple[str, ...]:
    gelus = sum(number for kind, number in kinds.items() if kind.endswith(_GELU))
    norms = sum(kinds[kind] for kind in _NORMS)
    found = [("layer norm", norms, 2 * layers + 1), ("GELU", gelus, layers)]
    if not split_attention:
        found.append(("attention", kinds[_ATTENTION], layers))
    return tuple(f"{what} ({made} of {wanted})" for what, made, wanted in found if made < wanted)
