"""One verdict of a check."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from yarnconv.targets.facts import FactComparison

Outcome = Literal["holds", "fails", "not_judged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """reason: one sentence, for people. waived: left out because the user said so, or gave
    nothing to compare with.
    """

    outcome: Outcome
    reason: str
    waived: bool = False


def conclude_facts(facts: Sequence[FactComparison]) -> Verdict:
    """What follows from the facts that an artefact states: those its runtime computes with decide."""
    decisive = [fact for fact in facts if fact.decisive]
    if wrong := [fact for fact in decisive if not fact.agrees]:
        listed = "; ".join(f"{fact.key} is {fact.found}, expected {fact.expected}" for fact in wrong)
        return Verdict(outcome="fails", reason=listed)
    return Verdict(outcome="holds", reason=f"{len(decisive)} facts agree")
