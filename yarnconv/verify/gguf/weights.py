"""The weights verdict of a GGUF."""

from yarnconv.targets.gguf.rope import ROPE_FREQS
from yarnconv.verify.gguf.case import Case
from yarnconv.verify.report import Verdict
from yarnconv.verify.weights import TensorComparison, compare_tensor

SHOWN_PROBLEMS = 3


def _compare_all(case: Case) -> list[TensorComparison]:
    compared = []
    values = {name: tensor.nbytes for name, tensor in case.artefact.tensors.items()}
    with case.progress.stage("Comparing weights", len(values)) as advance:
        for place in case.places:
            stored = case.artefact.tensors.get(place.name)
            compared.append(compare_tensor(place, stored, case.options.coverage, case.options.seed))
            advance(1)
    return compared


def judge_weights(case: Case) -> tuple[Verdict, list[TensorComparison]]:
    """Every tensor of the checkpoint, and none besides (rope_freqs is the metadata verdict's)."""
    if case.options.coverage == "none":
        return Verdict(outcome="not_judged", reason="left out (--weights none)", waived=True), []
    compared = _compare_all(case)
    surplus = case.artefact.tensors.keys() - {place.name for place in case.places} - {ROPE_FREQS}
    problems = [f"{tensor.name} {tensor.problem}" for tensor in compared if tensor.problem is not None]
    problems += [f"{name} is none of the checkpoint's tensors" for name in sorted(surplus)]
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        reason = "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        return Verdict(outcome="fails", reason=reason), compared
    if unknown := sorted({str(tensor.ggml_type) for tensor in compared if not tensor.known}):
        reason = f"how far {', '.join(unknown)} may move a weight has not been measured"
        return Verdict(outcome="not_judged", reason=reason), compared
    millions = sum(tensor.judged for tensor in compared) / 1e6
    return Verdict(
        outcome="holds", reason=f"{len(compared)} tensors, {millions:.3g} M values compared"
    ), compared
