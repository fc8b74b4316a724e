"""What is wrong with an artefact, or may be: each with a code that stays, and with what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# error: its runtime computes something else than the artefact says or should. warning: it computes what it
# says, and that is probably not what its owner wants. note: worth knowing.
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """code: one of those in `CODES`. message: what was found. remedy: what to do, for people."""

    code: str
    severity: Severity
    message: str
    remedy: str


def without_repeats(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The first of each code: what is said of it first says most."""
    found: dict[tuple[str, Severity], Finding] = {}
    for finding in findings:
        found.setdefault((finding.code, finding.severity), finding)
    return tuple(found.values())


def at_least(findings: tuple[Finding, ...], severity: Severity) -> bool:
    """Whether any finding is as severe as that."""
    return any(SEVERITIES.index(f.severity) >= SEVERITIES.index(severity) for f in findings)


CODES = {
    # what the numbers are instead of what is said
    "plain-rope": "no scaling where one is said",
    "linear": "every frequency divided by the factor, where another method is said",
    "ntk-aware": "a larger base, where another method is said",
    "by-parts": "frequencies by parts, where another method is said",
    "dynamic-frozen": "one set of frequencies at every length, where a dynamic scaling is said",
    "other-method": "another method than the one that is said",
    "wrong-theta": "another RoPE base",
    "wrong-factor": "another factor",
    "wrong-original-context": "the scaling counts from another original context",
    "original-from-extended": "the extended context stands where the original one should",
    "betas-ignored": "other betas than the ones that are said",
    "truncate-ignored": "the correction range is rounded where it should not be, or the reverse",
    "temperature-missing": "YaRN's frequencies without its attention temperature",
    "temperature-twice": "the attention temperature is applied twice",
    "temperature-relogged": "the attention factor was put through its own formula again",
    "attention-factor-dropped": "the formula's attention factor in place of the one that is said",
    "attention-factor-wrong": "an attention factor that nothing explains",
    "softmax-factor-missing": "the softmax scale of multi-head latent attention is left out",
    "wrong-rotary-dim": "another number of dimensions rotates",
    "wrong-pairing": "pairs of dimensions are taken in another order",
    # what is written, and read or not
    "keys-never-read": "keys that the runtime does not read",
    "unknown-architecture": "nobody has looked up what the runtime reads for this architecture",
    "context-length": "the stated context is not original x factor",
    "original-context-unknown": "nothing says which context the model was trained with",
    "record-disagrees": "what was recorded when it was written is not what its bytes hold",
    "file-replaced": "a file is not the one that was written",
    # tables
    "table-short": "the table ends before the stated context",
    "table-rounded": "a table of 16-bit numbers, whose angles blur with the position",
    "table-damaged": "rows that no frequency explains",
    "tables-unknown": "no table was found where one should be",
    "tables-differ": "layers that should be alike have different tables",
    "frequencies-unknown": "frequencies that no method explains",
    # what it means in use
    "static-inside": "static scaling, though the context is not above the original",
    "key-shift": "shifting the cache applies the temperature again",
    "config-ignored": "a key of the config that transformers does not read",
}
