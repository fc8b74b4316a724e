"""All that one `check` came to: what reports are written of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from yarnconv.errors import BadInput
from yarnconv.verify.baseline import Baseline, Comparison, compare_with_baseline
from yarnconv.verify.report import CheckReport, report_document
from yarnconv.verify.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """sample: what was run and compared, as JSON has it. command: what makes it again. comparison:
    None without a baseline. misfit: why nothing can be held against the baseline that was given.
    """

    report: CheckReport
    sample: Mapping[str, str]
    command: str
    comparison: Comparison | None = None
    misfit: BadInput | None = None

    def held_against(self, baseline: Baseline, margin: float) -> "CheckResult":
        """The same with what the comparison came to, or why there is none: what was measured is not lost."""
        try:
            return replace(self, comparison=compare_with_baseline(self.document, baseline, margin))
        except BadInput as error:
            return replace(self, misfit=error)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """By name."""
        report = self.report
        return {"structure": report.structure, "weights": report.weights, "metadata": report.metadata}

    @property
    def regressed(self) -> bool:
        """Whether any figure got worse than the baseline allows."""
        return self.comparison is not None and bool(self.comparison.regressions)

    @property
    def passes(self) -> bool | None:
        """False where parity fails or a figure got worse; None where one of the two could not be judged."""
        if self.misfit is not None and self.report.parity is True:
            return None
        return False if self.regressed else self.report.parity

    @property
    def document(self) -> dict[str, Any]:
        """`check --json`."""
        made = {**report_document(self.report), "sample": dict(self.sample)}
        if self.misfit is not None:
            return {**made, "baseline": {"path": self.misfit.where, "misfit": self.misfit.what}}
        return made if self.comparison is None else {**made, "baseline": asdict(self.comparison)}
