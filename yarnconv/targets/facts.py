"""One fact that an artefact states, beside the one that the plan expects."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FactComparison:
    """key: what the artefact calls it. decisive: whether its runtime computes with it."""

    key: str
    expected: str
    found: str
    agrees: bool
    decisive: bool = True
