"""All that one `check` came to: what reports are written of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from yarnconv.verify.baseline import Comparison
from yarnconv.verify.report import CheckReport, report_document
from yarnconv.verify.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """sample: what was run and compared, as JSON has it. command: what makes it again. comparison:
    None without a baseline.
    """

    report: CheckReport
    sample: Mapping[str, str]
    command: str
    comparison: Comparison | None = None

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
        """False where parity fails or a figure got worse; None where parity could not be judged."""
        return False if self.regressed else self.report.parity

    @property
    def document(self) -> dict[str, Any]:
        """`check --json`."""
        made = {**report_document(self.report), "sample": dict(self.sample)}
        return made if self.comparison is None else {**made, "baseline": asdict(self.comparison)}
