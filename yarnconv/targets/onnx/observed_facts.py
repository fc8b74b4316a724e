"""The RoPE that an ONNX model of any maker carries, held against a plan fact by fact: by its numbers, as its
tensors are called what nobody knows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yarnconv.plan import ConversionPlan
from yarnconv.rope_plan import RopeGroup, layer_ranges
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.inspection.carried_rope import CarriedGroup, Claims
from yarnconv.targets.inspection.findings import Finding
from yarnconv.targets.inspection.rope_findings import claim_findings, described, group_findings
from yarnconv.targets.onnx.cache_reading import client_context
from yarnconv.targets.onnx.files import CONFIG_FILE
from yarnconv.targets.onnx.inspection import carried_groups
from yarnconv.targets.onnx.observed import ObservedRope, observe
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.rope import group_context

PLAN = "the plan"
TEMPERATURE = frozenset(
    {"temperature-missing", "temperature-twice", "temperature-relogged", "attention-factor-dropped"}
    | {"attention-factor-wrong", "softmax-factor-missing"}
)
REACH, PAIRING = frozenset({"table-short"}), frozenset({"wrong-pairing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedFacts:
    """facts: what was read, beside what the plan has. reach: positions that every table holds; None where
    there are no tables. unread: of which layers nothing could be read, for people; None where all was.
    """

    facts: tuple[FactComparison, ...]
    reach: int | None
    unread: str | None


def _claims(plan: ConversionPlan, group: RopeGroup, max_context: int) -> Claims:
    return Claims(
        source=PLAN,
        scaling=group.scaling,
        original_context=group_context(group, plan.rope.original_context),
        context=max_context,
        pairing=plan.description.layers[group.layers[0]].attention.pairing,
    )


def _findings(claim: Claims, carried: CarriedGroup, max_context: int) -> list[Finding]:
    """What its runtime computes otherwise than the plan."""
    own = group_findings(carried, [max_context], judge_temperature=False)
    return [*claim_findings(claim, carried), *(finding for finding in own if finding.severity == "error")]


def _reaches(carried: CarriedGroup) -> list[int]:
    """Positions that the tables hold, of those buckets that have one; none where one is damaged."""
    if any(bucket.broken is not None for bucket in carried.buckets):
        return []
    return [bucket.reach for bucket in carried.buckets if bucket.reach is not None]


def _fact(key: str, expected: str, found: str, wrong: Sequence[Finding]) -> FactComparison:
    said = "; ".join(f"{finding.code}: {finding.message}" for finding in wrong)
    return FactComparison(key=key, expected=expected, found=said or found, agrees=not wrong)


def _compare(
    group: RopeGroup, claim: Claims, carried: CarriedGroup, max_context: int, where: str
) -> Iterator[FactComparison]:
    """The facts of layers that turn by one source."""
    assert group.scaling is not None
    findings = _findings(claim, carried, max_context)
    last, wanted = carried.buckets[-1], group.buckets[-1]
    elsewhere = TEMPERATURE | REACH | PAIRING
    frequencies = [finding for finding in findings if finding.code not in elsewhere]
    fits = [bucket.fit.scaling for bucket in carried.buckets]
    turned_by = ", ".join("no known method" if fit is None else described(fit) for fit in fits)
    yield _fact(f"frequencies{where}", described(group.scaling), turned_by, frequencies)
    temperature = [finding for finding in findings if finding.code in TEMPERATURE]
    if temperature or not frequencies:  # the temperature of other frequencies says nothing
        found = f"{last.observation.attention_factor:.6g}"
        yield _fact(f"attention factor{where}", f"{wanted.attention_factor:.6g}", found, temperature)
    reaches = _reaches(carried)
    reach = f"{max(reaches)} positions" if reaches else "angles are computed as they are asked for"
    short = [finding for finding in findings if finding.code in REACH]
    if reaches or last.reach is None:
        yield _fact(f"positions{where}", f"{max_context} positions", reach, short)
    if carried.pairing is not None:
        turned = [finding for finding in findings if finding.code in PAIRING]
        yield _fact(f"pairs of dimensions{where}", str(claim.pairing), carried.pairing, turned)


def _candidates(
    group: RopeGroup, found: Sequence[tuple[ObservedRope, CarriedGroup]]
) -> tuple[list[tuple[ObservedRope, CarriedGroup]], set[int]]:
    """What may turn a group's layers, and which of them that is known of."""
    own = set(group.layers)
    shown = [(rope, carried) for rope, carried in found if own & set(rope.layers or ())]
    if shown:
        covered = {layer for rope, _ in shown for layer in rope.layers or ()}
        return shown, own & covered
    return [(rope, carried) for rope, carried in found if rope.layers is None], own


def _context(model: OnnxModel, max_context: int) -> Iterator[FactComparison]:
    """What clients are told."""
    stated = client_context(model)
    if stated is not None:
        yield FactComparison(
            key=f"{CONFIG_FILE}: model.context_length",
            expected=str(max_context),
            found=str(stated),
            agrees=stated == max_context,
        )


def compare_observed(plan: ConversionPlan, model: OnnxModel, max_context: int) -> ObservedFacts:
    """Every group of layers by what was found to turn it. max_context: positions that tables should reach.

    Where the graph does not show which layers a source turns, a group is held against the source that agrees
    with it, if any does. Raises BadInput for a graph that cannot be walked.
    """
    claims = {id(group): _claims(plan, group, max_context) for group in plan.rope.groups}
    sources = observe(model)
    found = list(zip(sources, carried_groups(sources, tuple(claims.values())), strict=True))
    facts: list[FactComparison] = []
    unread: list[int] = []
    for group in plan.rope.groups:
        claim, several = claims[id(group)], len(plan.rope.groups) > 1
        where = f", layers {layer_ranges(group.layers)}" if several else ""
        candidates, covered = _candidates(group, found)
        if group.scaling is None:
            turned = sorted(set(group.layers) & {n for rope, _ in found for n in rope.layers or ()})
            yes = f"layers {layer_ranges(turned)} turn" if turned else "none"
            facts.append(
                FactComparison(key=f"rotation{where}", expected="none", found=yes, agrees=not turned)
            )
            continue
        read = [(rope, carried) for rope, carried in candidates if carried.buckets]
        right = [one for one in read if not _findings(claim, one[1], max_context)]
        if not read or (not right and len(read) < len(candidates)):
            unread += group.layers
            continue
        unread += set(group.layers) - covered
        shown = read[0][0].layers is not None
        held = read if shown else (right or read)[:1]
        for rope, carried in held:
            own = f", layers {layer_ranges(sorted(rope.layers or ()))}" if len(held) > 1 else where
            facts += _compare(group, claim, carried, max_context, own)
    said = (
        f"what layers {layer_ranges(sorted(unread))} turn by is made in a way that is not read"
        if unread
        else None
    )
    reaches = [max(_reaches(carried)) for _, carried in found if _reaches(carried)]
    return ObservedFacts(
        facts=(*facts, *_context(model, max_context)), reach=min(reaches, default=None), unread=said
    )
