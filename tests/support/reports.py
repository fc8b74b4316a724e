"""Results of a check to write reports of: a real one, and the same with strangers' words in it."""

from dataclasses import replace

from yarnconv.progress import Silent
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.facts import FactComparison
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.gguf.check import check_gguf
from yarnconv.verify.report import Diagnosis
from yarnconv.verify.result import CheckResult

HOSTILE = "<script>document.title='owned'</script>\"'&\x1b[31m\u202e\x00\ud800]]>${{ x }} {{ 7 * 7 }} |`\n# a"


def checked(path, directory, **options):
    """The result of a real check."""
    report = check_gguf(path, directory, RopeRequest(**options), CheckOptions(), Silent())
    sample = {"tokens": "random", "weights": "sampled"}
    return CheckResult(report=report, sample=sample, command="yarnconv check a.gguf --reference b")


def spoilt(result):
    """The same, with what strangers may have written wherever they may."""
    report = result.report
    diagnosis = Diagnosis(label=HOSTILE, explanation=HOSTILE, distances={HOSTILE: 1e-7, "plain": 1e300})
    key = FactComparison(key=HOSTILE, expected=HOSTILE * 1000, found=HOSTILE, agrees=False)
    verdicts = {
        name: replace(getattr(report, name), outcome="fails", reason=HOSTILE)
        for name in ("structure", "weights", "metadata")
    }
    tensor = replace(report.tensors[0], name=HOSTILE, stored_as=HOSTILE, problem=HOSTILE)
    report = replace(
        report,
        **verdicts,
        artifact=HOSTILE,
        reference=HOSTILE,
        remark=HOSTILE,
        keys=[key],
        tensors=[tensor] * 300,
        diagnosis=diagnosis,
        as_is=replace(report.as_is, note=HOSTILE),
        runtime=dict.fromkeys(report.runtime, HOSTILE),
    )
    return replace(result, report=report, command=HOSTILE)
