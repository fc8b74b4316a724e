"""What a check found, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from yarnconv.rope_plan import RopePlan, rope_facts
from yarnconv.targets.facts import FactComparison
from yarnconv.verify.compare import Window
from yarnconv.verify.expectation import Source
from yarnconv.verify.verdict import Verdict
from yarnconv.verify.weights import TensorComparison

BEYOND_ALL = 1e300  # a relative error that stands for one that is no number
# What an artefact's own weights cannot show: their float32 copy has the same rows in the same places.
UNSEEN = "that the weights are the model's, and the rows of q and k in their order, was not judged"
# The fields of a window that mean something where there is no tolerance.
INFORMATIVE = (
    *("name", "phase", "bucket", "first", "last"),
    *("relative", "relative_max", "max_abs", "mean_abs", "kl_max", "kl_mean", "top1_agreement"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsIs:
    """The artefact run untouched: all layers, its own types. Information: what separates it from the
    checkpoint is mostly what its types lose.

    windows: against the checkpoint's own weights; empty where it was not run or not compared.
    note: what was run, or why not.
    finite: False where a logit was no number.
    """

    windows: Sequence[Window]
    note: str
    finite: bool = True

    @property
    def problem(self) -> str | None:
        """What is wrong whatever its types lose: no numbers, or outside a tolerance it was held to."""
        if not self.finite or any(window.relative_max >= BEYOND_ALL for window in self.windows):
            return "its logits are no numbers"
        bad = [w for w in self.windows if w.first_bad_position is not None and w.blind is None]
        return f"relative error {bad[0].relative_max:.2g} ({bad[0].name}, {bad[0].phase})" if bad else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Which mistake explains the artefact's logits.

    label: code of the hypothesis that explains them within the tolerance; None where none does.
    explanation: one or two sentences for people, with the remedy. distances: by the code of each hypothesis,
    how far the artefact's logits are from what it predicts: relative error of the worst position, the nearest
    first; of one that is far off, in the first passage that shows it.
    """

    label: str | None
    explanation: str
    distances: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """layers: how many of all layers the structure was judged with. remark: what to make of it, where the
    verdicts alone do not say; where parity holds, how far. diagnosis: None where nobody asked why. ran: what
    the windows are of, where that is no float32 copy of the first layers.
    """

    artifact: str
    reference: str
    expected_from: Source
    expected: RopePlan
    runtime: Mapping[str, str]
    seed: int
    layers: int
    all_layers: int
    structure: Verdict
    weights: Verdict
    metadata: Verdict
    windows: Sequence[Window]
    keys: Sequence[FactComparison]
    tensors: Sequence[TensorComparison]
    as_is: AsIs
    remark: str | None = None
    diagnosis: Diagnosis | None = None
    ran: str | None = None

    @property
    def parity(self) -> bool | None:
        """False if any verdict fails; None if one could not be reached; else True."""
        verdicts = (self.structure, self.weights, self.metadata)
        if any(verdict.outcome == "fails" for verdict in verdicts):
            return False
        if any(verdict.outcome == "not_judged" and not verdict.waived for verdict in verdicts):
            return None
        return True


def without_checkpoint(report: CheckReport) -> CheckReport:
    """A report of a check against a config.json alone, with what that leaves open."""
    seen = "parity holds as far as it can be seen without the checkpoint"
    said = f"{seen if report.parity is True else 'there was no checkpoint to compare with'}: {UNSEEN}"
    return replace(report, remark="; ".join(filter(None, (report.remark, said))))


def weights_by_type(tensors: Sequence[TensorComparison]) -> dict[str, dict[str, Any]]:
    """How far an artefact's weights are from the checkpoint's, by type."""
    found: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        if tensor.stored_as is None or tensor.relative is None:
            continue
        entry = found.setdefault(tensor.stored_as, {"tensors": 0, "values": 0, "relative_max": 0.0})
        entry["tensors"] += 1
        entry["values"] += tensor.judged
        entry["relative_max"] = max(entry["relative_max"], tensor.relative)
    return found


def report_document(report: CheckReport) -> dict[str, Any]:
    """`check --json`."""
    verdicts = {
        "structure": report.structure,
        "weights": report.weights,
        "metadata": report.metadata,
    }
    return {
        "parity": report.parity,
        "verdicts": {name: verdict.outcome for name, verdict in verdicts.items()},
        "reasons": {name: verdict.reason for name, verdict in verdicts.items()},
        "reference": report.reference,
        "artifact": report.artifact,
        "expected_from": report.expected_from,
        "expected": rope_facts(report.expected, with_tables=False),
        "runtime": dict(report.runtime),
        "seed": report.seed,
        "layers": report.layers,
        "all_layers": report.all_layers,
        "windows": [asdict(window) for window in report.windows],
        "metadata": [asdict(key) for key in report.keys],
        "weights": {
            "types": weights_by_type(report.tensors),
            "problems": [
                {"tensor": tensor.name, "type": tensor.stored_as, "problem": tensor.problem}
                for tensor in report.tensors
                if tensor.problem is not None
            ],
            "unknown_types": sorted({str(t.stored_as) for t in report.tensors if not t.known}),
        },
        "as_is": {
            "note": report.as_is.note,
            "windows": [
                {name: getattr(window, name) for name in INFORMATIVE} for window in report.as_is.windows
            ],
        },
        "remark": report.remark,
        "diagnosis": None if report.diagnosis is None else asdict(report.diagnosis),
    }
