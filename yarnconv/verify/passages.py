"""What is run to judge an artefact: short passages of tokens at telling positions.

A rotation error shows wherever a query looks far back, so a passage need not be as long as its positions
are high: a prefix at positions 0, 1, ... and then a gap to where it is judged. llama.cpp wants the
positions of a sequence consecutive; the gap is made there by a jump: a token that stands alone in a sequence
of its own, to which the prefix is copied afterwards. So that token sees only itself, and the reference is
told the same. ONNX graphs take positions as they are given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Phase = Literal["prefill", "decode"]
Tokens = NDArray[np.int64]

PREFIX = 64  # tokens that the judged ones look back to
INSIDE = 128  # tokens of the passage inside the original context
AROUND = 8  # judged tokens on either side of a position, prefilled
DECODED = 6  # judged tokens that are fed one by one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passage:
    """One run of a model, at chosen positions.

    tokens, positions: int64[n]; positions increase.
    jump: index of the token that stands alone behind a gap in the positions; None where none does.
    judged: index of the first token whose logits count.
    decoded: index of the first token that is fed alone, as in generation.
    bucket, context: of a dynamic scaling, the bucket that is judged and the context that the client declares
        to get it, in positions; None where the frequencies are the same for all.
    """

    name: str
    tokens: Tokens
    positions: Tokens
    jump: int | None
    judged: int
    decoded: int
    bucket: int = 0
    context: int | None = None

    def visible(self, window: int | None = None) -> NDArray[np.bool_]:
        """bool[n, n]: whether token i (row) attends to token j. window: tokens that one looks back over, with
        itself, None for all; it counts positions where a token stands alone, as llama.cpp has it.
        """
        count = len(self.tokens)
        mask = np.tri(count, dtype=np.bool_)
        if window is not None:
            places = np.arange(count) if self.jump is None else self.positions
            mask &= places[:, None] - places[None, :] < window
        if self.jump is not None:
            mask[self.jump, : self.jump] = False
        return mask

    def phases(self) -> Iterator[tuple[Phase, slice]]:
        """The judged tokens of each phase, as slices of all judged ones."""
        split = self.decoded - self.judged
        if split > 0:
            yield "prefill", slice(0, split)
        if len(self.tokens) > self.decoded:
            yield "decode", slice(split, len(self.tokens) - self.judged)

    @property
    def judged_positions(self) -> Tokens:
        """Positions of the judged tokens."""
        return self.positions[self.judged :]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """Judged positions first..last, the last `decoded` of them one by one."""

    name: str
    first: int
    last: int
    decoded: int


def _spans(original: int, target: int, inside: int) -> Iterator[_Span]:
    inside = min(inside, original) - 1
    yield _Span(name="inside", first=0, last=inside, decoded=min(DECODED, inside))
    edge, crossing = min(original + AROUND, target), min(original + DECODED // 2, target)
    # prefilled across the boundary, then decoded across it
    yield _Span(name="edge", first=original - AROUND, last=edge - 1, decoded=0)
    yield _Span(name="crossing", first=original - AROUND, last=crossing - 1, decoded=DECODED)
    if target > original:
        middle = (original + target) // 2
        yield _Span(name="beyond", first=middle - AROUND, last=middle + AROUND - 1, decoded=DECODED)
        yield _Span(name="far end", first=target - 2 * AROUND, last=target - 1, decoded=DECODED)


def make_passages(
    tokens: Tokens,
    *,
    original_context: int,
    target_context: int,
    prefix: int = PREFIX,
    inside: int = INSIDE,
    jumps: bool = True,
) -> tuple[Passage, ...]:
    """Passages inside the original context, at its edge, beyond it, and at the end of the target context.

    tokens: taken in order, from the start again where they run out. Where a prefix and a gap do not fit
    in front of the judged positions, a passage begins at position 0. jumps: whether the first token behind
    a gap stands alone, as llama.cpp wants it.
    """
    passages = []
    taken = 0
    for span in _spans(original_context, target_context, inside):
        first, last = max(span.first, 0), min(span.last, target_context - 1)
        gap = first > prefix + 1
        positions = np.arange(last + 1)
        if gap:
            positions = np.concatenate([np.arange(prefix), np.arange(first - 1, last + 1)])
        count = len(positions)
        judged = 0 if span.first == 0 else count - (last - first + 1)
        passages.append(
            Passage(
                name=span.name,
                tokens=np.resize(np.roll(tokens, -taken), count),
                positions=positions.astype(np.int64),
                jump=prefix if gap and jumps else None,
                judged=judged,
                decoded=max(count - span.decoded, judged),
            )
        )
        taken += count
    return tuple(passages)
