"""From what was found and what is said to findings: the one place where numbers become causes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from yarnconv.rope.bases import within
from yarnconv.rope.identify import FACTOR_TOLERANCE, Context, Fit
from yarnconv.rope.mistakes import relogged
from yarnconv.rope.observation import Observation
from yarnconv.rope.scaling import (
    DynamicNtk,
    DynamicYarn,
    Linear,
    LongRope,
    NtkAware,
    Scaling,
    Stretched,
    Unscaled,
    Yarn,
    method_name,
)
from yarnconv.rope.tables import (
    RopeTables,
    bucket_scalings,
    buckets,
    extended_context,
    magnitude,
    ntk_base,
    reached_context,
    yarn_attention_factor,
)
from yarnconv.targets.inspection.carried_rope import CarriedBucket, CarriedGroup, Claims
from yarnconv.targets.inspection.findings import Finding

# of a cosine that was rounded to 16 bits
HALF_ROUNDING = {"FLOAT16": 2.0**-11, "BFLOAT16": 2.0**-8}
TEMPERATURE_COEFFICIENT = 0.1  # of the formula that every tool has
CONVERT_AGAIN = "Convert the checkpoint again with yarnconv."


def described(scaling: Scaling, context: Context = "said") -> str:
    """A scaling in a few words. context: how its original context is known."""
    name = {"ntk": "NTK-aware", "yarn": "YaRN", "ntk-by-parts": "NTK-by-parts"}
    said = name.get(method_name(scaling), method_name(scaling))
    if isinstance(scaling, Unscaled) or scaling.factor == 1.0:
        return f"plain RoPE, base {scaling.theta:g}"
    text = f"{said} x{scaling.factor:g}"
    if context != "unknown":
        text += f" of {scaling.original_context}"
    if isinstance(scaling, NtkAware) and not isinstance(scaling, DynamicNtk):
        text += f", which is a base of {ntk_base(scaling):.8g}"
    if context == "usual":
        text += " (if its betas are the usual ones)" if isinstance(scaling, Yarn) else " (as is usual)"
    if isinstance(scaling, Yarn):
        if (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
            text += f", betas {scaling.beta_fast:g} and {scaling.beta_slow:g}"
        if not scaling.truncate:
            text += ", not truncated"
        if scaling.attention_factor not in {None, 1.0}:
            text += f", attention factor {scaling.attention_factor:.6g}"
    return text


def _error(code: str, message: str, remedy: str = CONVERT_AGAIN) -> Finding:
    return Finding(code=code, severity="error", message=message, remedy=remedy)


def _frequencies_agree(tables: RopeTables, observed: Observation) -> bool:
    return len(tables.inv_freq) == len(observed.inv_freq) and within(tables.inv_freq, observed)


_METHODS = {
    Unscaled: "plain-rope",
    Linear: "linear",
    NtkAware: "ntk-aware",
    Yarn: "by-parts",
    DynamicYarn: "by-parts",
}


def _other_frequencies(
    expected: Scaling, fit: Fit, observed: Observation, who: str, claimed_context: int | None
) -> Finding:
    """Why the frequencies are others than those of the scaling that is said."""
    if expected.rotary_dim != 2 * len(observed.inv_freq):
        return _error(
            "wrong-rotary-dim",
            f"{2 * len(observed.inv_freq)} dimensions rotate; {expected.rotary_dim} by {who}",
        )
    found, said = fit.scaling, described(expected)
    if isinstance(expected, Unscaled) and isinstance(found, Stretched):
        message = f"it turns by {described(found, fit.context)}; {who} says {said}"
        meant = f"If it was meant, say so: --factor {found.factor:.9g}. Else convert the checkpoint again."
        return _error(_METHODS.get(type(found), "other-method"), message, meant)
    if found is None:
        return _error("frequencies-unknown", f"its frequencies are of no known method; {who} says {said}")
    message = f"it turns by {described(found, fit.context)}; {who} says {said}"
    if isinstance(found, Yarn) != isinstance(expected, Yarn) or (
        type(found) is not type(expected) and not isinstance(found, Yarn)
    ):
        return _error(_METHODS.get(type(found), "other-method"), message)
    if found.theta != expected.theta:
        return _error("wrong-theta", f"its base is {found.theta:g}; {who} says {expected.theta:g}")
    if not isinstance(found, Unscaled | LongRope) and not isinstance(expected, Unscaled | LongRope):
        if found.factor != expected.factor:
            return _error("wrong-factor", message)
        if isinstance(found, Yarn) and isinstance(expected, Yarn):
            return _other_ramp(expected, found, message, claimed_context)
        if found.original_context != expected.original_context:
            return _error("wrong-original-context", message)
    return _error("other-method", message)


def _other_ramp(expected: Yarn, found: Yarn, message: str, claimed_context: int | None) -> Finding:
    """Which of the numbers of YaRN's ramp is another."""
    if found.truncate != expected.truncate:
        return _error("truncate-ignored", message)
    if found.original_context != expected.original_context:
        extended = {claimed_context, extended_context(expected)}
        taken = found.original_context in extended
        message += " (of context and betas only the quotients can be read)"
        return _error("original-from-extended" if taken else "wrong-original-context", message)
    return _error("betas-ignored", message)


def _other_temperature(expected: Scaling, tables: RopeTables, fit: Fit, who: str) -> Finding | None:
    """Why the attention factor is another than the one that is said; None where it is that one."""
    found, wanted = fit.attention_factor, tables.attention_factor
    if math.isclose(found, wanted, rel_tol=fit.tolerance):
        return None
    message = f"the attention factor is {found:.6g}; by {who} it is {wanted:.6g}"

    def is_(value: float) -> bool:
        return math.isclose(found, value, rel_tol=fit.tolerance)

    if isinstance(expected, Yarn) and is_(magnitude(expected.factor, TEMPERATURE_COEFFICIENT)):
        return _error("attention-factor-dropped", f"{message}, and the formula is taken instead")
    if is_(1.0):
        return _error("temperature-missing", message)
    if is_(wanted**2):
        return _error("temperature-twice", message)
    if tables.factor > 1.0 and any(map(is_, relogged(wanted, tables.factor))):
        return _error("temperature-relogged", message)
    return _error("attention-factor-wrong", message)


def _against(claim: Claims, bucket: CarriedBucket, scaling: Scaling, tables: RopeTables) -> Iterator[Finding]:
    """What one bucket has otherwise than it is said. scaling: what it would be by itself."""
    observed = bucket.observation
    agree = _frequencies_agree(tables, observed)
    if not agree:
        finding = _other_frequencies(scaling, bucket.fit, observed, claim.source, claim.context)
        yield finding
        if finding.code not in {"truncate-ignored", "betas-ignored", "wrong-original-context"} | {
            "original-from-extended"
        }:
            return  # the temperature of another method says nothing
    temperature = _other_temperature(scaling, tables, bucket.fit, claim.source)
    if temperature is not None:
        yield temperature
    found, wanted = observed.softmax_multiplier, tables.softmax_multiplier
    if found is not None and not math.isclose(found, wanted, rel_tol=FACTOR_TOLERANCE):
        message = f"the softmax scale is multiplied by {found:.6g}; {claim.source} says {wanted:.6g}"
        yield _error("softmax-factor-missing", message)


def _other_count(claim: Claims, group: CarriedGroup, wanted: int) -> Finding:
    """Sets of frequencies, one for each range of lengths, that are too many or too few."""
    assert claim.scaling is not None
    says = f"{claim.source} says {described(claim.scaling)}, of {wanted} set(s) by the length"
    fit = group.buckets[0].fit
    found = fit.scaling
    if len(group.buckets) > 1:
        return _error("other-method", f"it holds {len(group.buckets)} sets of frequencies; {says}")
    carried = "frequencies of no known method" if found is None else described(found, fit.context)
    code = "plain-rope" if isinstance(found, Unscaled) else "dynamic-frozen"
    return _error(code, f"it turns by {carried} at every length; {says}")


def _reach(claim: Claims, group: CarriedGroup) -> int | None:
    """Positions that both the tables and what is said of them end at; None where either has no end."""
    reach = group.buckets[-1].reach
    return None if reach is None or claim.context is None else max(reach, claim.context)


def _served(scaling: Scaling, reach: int | None) -> int:
    """How many of a scaling's buckets serve requests of up to so many positions; None: of any length."""
    found = buckets(scaling)
    if reach is None or isinstance(scaling, Unscaled):
        return len(found)
    contexts = (reached_context(scaling.original_context, one.factor) for one in found[:-1])
    return next((number for number, context in enumerate(contexts, 1) if reach <= context), len(found))


def claim_findings(claim: Claims, group: CarriedGroup) -> Iterator[Finding]:
    """What the extended layers have otherwise than it is said."""
    if claim.pairing is not None and group.pairing is not None and claim.pairing != group.pairing:
        said = f"pairs of dimensions are {group.pairing}; {claim.source} has them {claim.pairing}"
        yield _error("wrong-pairing", said)
    if claim.scaling is None or not group.buckets:
        return
    served = _served(claim.scaling, _reach(claim, group))
    wanted, alone = buckets(claim.scaling)[:served], bucket_scalings(claim.scaling)[:served]
    if len(wanted) != len(group.buckets):
        yield _other_count(claim, group, len(wanted))
        return
    seen: set[str] = set()
    for bucket, scaling, tables in zip(group.buckets, alone, wanted, strict=True):
        for finding in _against(claim, bucket, scaling, tables):
            if finding.code not in seen:
                seen.add(finding.code)
                yield finding


def main_group(groups: Sequence[CarriedGroup], claims: Sequence[Claims]) -> CarriedGroup:
    """The extended layers: those that are as somebody says, else the first."""
    for claim in claims:
        for group in groups:
            if claim.scaling is not None and group.buckets and not list(claim_findings(claim, group)):
                return group
    return groups[0]


def _temperature_alone(fit: Fit) -> Iterator[Finding]:
    """What is odd about a temperature that nobody claims anything of."""
    scaling = fit.scaling
    if isinstance(scaling, LongRope) and fit.temperature == "other":
        formula = buckets(replace(scaling, attention_factor=None))[-1].attention_factor
        yield Finding(
            code="attention-factor-wrong",
            severity="warning",
            message=f"the attention factor is {fit.attention_factor:.6g}, by its formula {formula:.6g}",
            remedy="Convert it again, unless the model's config asks for this attention_factor.",
        )
        return
    if not isinstance(scaling, Yarn) or scaling.factor == 1.0:
        if fit.temperature == "other":
            yield Finding(
                code="attention-factor-wrong",
                severity="warning",
                message=f"an attention factor of {fit.attention_factor:.6g} without YaRN's frequencies",
                remedy="Look up which scaling the model was meant to have, and convert it again.",
            )
        return
    formula = yarn_attention_factor(replace(scaling, attention_factor=None))
    said = f"the attention factor is {fit.attention_factor:.6g}, by YaRN's formula {formula:.6g}"
    meant = "Convert it again, unless the model's config asks for this attention_factor."
    if fit.temperature == "missing":
        yield Finding(
            code="temperature-missing",
            severity="warning",
            message=f"{said}: this is NTK-by-parts, and not YaRN",
            remedy=meant,
        )
    elif fit.temperature == "twice":
        yield _error("temperature-twice", f"{said}: it is the square", meant)
    elif fit.temperature == "relogged":
        yield _error("temperature-relogged", f"{said}, put through the formula once more", meant)


def group_findings(
    group: CarriedGroup, contexts: Sequence[int], *, judge_temperature: bool
) -> Iterator[Finding]:
    """What is odd about the numbers themselves. contexts: that clients are told. judge_temperature: whether
    nothing better says what the temperature should be.
    """
    for bucket in group.buckets:
        if bucket.broken is not None:
            yield _error("table-damaged", f"{group.source}: {bucket.broken}")
        elif bucket.fit.scaling is None:
            yield Finding(
                code="frequencies-unknown",
                severity="warning",
                message=f"the frequencies of {group.source} are of no known method",
                remedy="Compare with the checkpoint: --reference MODEL.",
            )
        elif judge_temperature:
            yield from _temperature_alone(bucket.fit)
    yield from _table_findings(group, max(contexts, default=None))


def _table_findings(group: CarriedGroup, context: int | None) -> Iterator[Finding]:
    reaches = [bucket.reach for bucket in group.buckets if bucket.reach is not None]
    damaged = any(bucket.broken is not None for bucket in group.buckets)
    if reaches and not damaged and context is not None and max(reaches) < context:
        message = f"its tables ({group.source}) end after {max(reaches)} positions, and {context} are said"
        yield _error("table-short", message, "Convert it again with --max-context, or state less.")
    rounding = HALF_ROUNDING.get(group.element or "")
    if rounding is not None:
        yield Finding(
            code="table-rounded",
            severity="warning",
            message=(
                f"{group.source} is stored as {group.element}: its cosines are off by up to {rounding:.1g}, "
                "at every position"
            ),
            remedy="Convert it again: yarnconv keeps tables in float32 whatever the weights are.",
        )


def context_findings(
    fit: Fit, original: int | None, context: int | None, where: str, *, dynamic: bool = False
) -> Iterator[Finding]:
    """Whether the stated context fits the scaling. original: what is said to be the original context."""
    scaling = fit.scaling
    if not isinstance(scaling, Stretched) or scaling.factor == 1.0 or context is None or original is None:
        return
    reached = extended_context(replace(scaling, original_context=original))
    if abs(context - reached) < scaling.factor:  # a fraction of a position at the most, times the factor
        return
    said = f"{where} is {context}, and {original} x {scaling.factor:g} is {reached}"
    if context <= original and not dynamic:
        yield Finding(
            code="static-inside",
            severity="warning",
            message=(
                f"{said}: inside the original context a static scaling costs quality and gives nothing"
                + (". Or the original context was taken from the extended one" if context == original else "")
            ),
            remedy=f"State a context of {reached}, correct the original context, or drop the scaling.",
        )
    else:
        yield _error("context-length", said, f"State {reached}, or the factor that reaches {context}.")
