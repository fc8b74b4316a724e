"""What an ONNX model carries of RoPE, whoever exported it: the numbers that it turns by, and whether they are
what the files around it say.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import isclose

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.rope.bases import within
from yarnconv.rope.identify import FACTOR_TOLERANCE, Clues
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import Unscaled
from yarnconv.targets.hf.inspection import claims_of
from yarnconv.targets.inspection.carried_rope import CarriedGroup, Claims, Inspected, carried_bucket, clues_of
from yarnconv.targets.inspection.findings import Finding, without_repeats
from yarnconv.targets.inspection.observed_table import ROUNDINGS
from yarnconv.targets.inspection.rope_findings import (
    claim_findings,
    context_findings,
    group_findings,
    main_group,
)
from yarnconv.targets.onnx.files import CONFIG_FILE
from yarnconv.targets.onnx.observed import ObservedRope, claimed_context, maker, observe
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.softmax_reading import with_softmax
from yarnconv.targets.record import RECORD_KEY, read_record, recorded_claims, recorded_request

MODEL_CONFIG = "config.json"
UNTOLD = "layers that the graph does not tell"
RECORD, CONFIG, CLIENTS = "its record", MODEL_CONFIG, CONFIG_FILE


def _stated_context(model: OnnxModel) -> int | None:
    """What clients are told, where that can be read."""
    try:
        return claimed_context(model)
    except BadInput:
        return None


def _config_claims(model: OnnxModel) -> Iterator[Claims]:
    """Of the model's config, where an exporter left one beside it that can be read."""
    path = model.directory / MODEL_CONFIG
    if not path.exists():
        return
    try:
        claim = claims_of(read_json_object(path), RopeRequest(), CONFIG)
    except BadInput:
        return  # of a model that is not known, or of none that turns
    yield replace(claim, context=_stated_context(model))


def _recorded_kinds(document: str) -> int:
    """How many kinds of layers the recorded config tells apart; 1 where it cannot be read."""
    try:
        config, options = read_record(document).get("config"), recorded_request(document)
        return claims_of(config, options, RECORD).kinds if isinstance(config, dict) and options else 1
    except (BadInput, Inexpressible):
        return 1


def _own_claims(model: OnnxModel, pairs: int) -> tuple[Claims, ...]:
    """What stands in and beside it, the most believable first: its record is of this very file, the config
    of the model before anything was done to it.
    """
    recorded = model.metadata(RECORD_KEY)
    context = _stated_context(model)
    if recorded is not None:
        try:
            record = recorded_claims(read_record(recorded), 2 * pairs, RECORD)
            record = replace(record, kinds=_recorded_kinds(recorded))
        except BadInput:
            record = Claims(source=f"{RECORD}, which cannot be read")
        return (record if context is None else replace(record, context=context),)
    found = tuple(_config_claims(model))
    if context is not None and (model.directory / CONFIG_FILE).exists():
        return (*found, Claims(source=CLIENTS, context=context))
    return found


def _layers(layers: tuple[int, ...] | None, alone: bool) -> str:
    """For people."""
    if layers is None:
        return "all layers" if alone else UNTOLD
    if alone or not layers:
        return f"{len(layers)} layers" if len(layers) != 1 else "1 layer"
    runs = layers == tuple(range(layers[0], layers[-1] + 1))
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {layers[0]} to {layers[-1]}" if runs else f"layers {', '.join(map(str, layers))}"


def _group(rope: ObservedRope, clues: Clues, alone: bool) -> CarriedGroup:
    return CarriedGroup(
        layers=_layers(rope.layers, alone),
        source=rope.source,
        element=_precision(rope),
        pairing=rope.pairing,
        buckets=tuple(carried_bucket(table, clues) for table in rope.buckets),
    )


def _is_main(rope: ObservedRope) -> tuple[bool, int]:
    """For sorting: what most layers turn by comes first, what none does last."""
    return rope.layers is None, -len(rope.layers or ())


def _differ(one: CarriedGroup, other: CarriedGroup) -> bool:
    """Whether layers turn by other numbers."""
    if len(one.buckets) != len(other.buckets):
        return True
    return any(
        len(a.inv_freq) != len(b.inv_freq)
        or not within(a.inv_freq, b)
        or not isclose(a.attention_factor, b.attention_factor, rel_tol=FACTOR_TOLERANCE)
        for a, b in (
            (mine.observation, its.observation) for mine, its in zip(one.buckets, other.buckets, strict=True)
        )
    )


def _layer_findings(
    main: CarriedGroup, groups: tuple[CarriedGroup, ...], claims: tuple[Claims, ...]
) -> Iterator[Finding]:
    """Layers that turn otherwise than the extended ones: right for families of several kinds of layers."""
    if any(claim.kinds > 1 for claim in claims):
        return
    for group in groups:
        if group is not main and group.layers != UNTOLD and _differ(main, group):
            yield Finding(
                code="tables-differ",
                severity="warning",
                message=f"{group.layers} turn by {group.source[:80]}, and not as most layers do",
                remedy="Right where the model scales some layers only; else export it again.",
            )


def _claim_findings(claim: Claims, group: CarriedGroup) -> Iterator[Finding]:
    """What is otherwise than it is said. A plain config beside scaled tables is of the model before it was
    extended, as far as anyone can tell.
    """
    found = list(claim_findings(claim, group))
    before = claim.source == CONFIG and isinstance(claim.scaling, Unscaled)
    if not before or not found:
        yield from found
        return
    yield Finding(
        code="config-ignored",
        severity="note",
        message=f"{found[0].message}: the config is of the model before it was extended, or was not heard",
        remedy="Hold it against what it should be: --reference MODEL with --factor.",
    )


def _findings(
    group: CarriedGroup, own: tuple[Claims, ...], references: tuple[Claims, ...]
) -> Iterator[Finding]:
    for claim in (*references, *own):
        yield from _claim_findings(claim, group)
    claims = (*own, *references)
    stated = [claim.context for claim in (*own[::-1], *references) if claim.context is not None]
    known = any(claim.scaling is not None for claim in claims)
    yield from group_findings(group, stated[:1], judge_temperature=not known)
    scaled = [c for c in claims if c.scaling is not None and not isinstance(c.scaling, Unscaled)]
    original = next((c.original_context for c in scaled if c.original_context is not None), None)
    if len(group.buckets) == 1 and stated and original is not None:
        # tables may end before all that the scaling reaches, and clients are told so
        inside = stated[0] <= original
        findings = context_findings(group.buckets[0].fit, original, stated[0], "the stated context")
        yield from (finding for finding in findings if inside or finding.code != "context-length")


def _precision(rope: ObservedRope) -> str:
    """The type that its numbers were rounded to, whatever they are stored as: the coarsest of its buckets."""
    kinds = {rope.element, *(table.precision for table in rope.buckets)}
    return max(kinds, key=lambda kind: ROUNDINGS.get(kind, 0.0))


def _magnitude(found: tuple[ObservedRope, ...]) -> float:
    """Relative uncertainty of attention factors."""
    return max((2 * ROUNDINGS.get(_precision(rope), 0.0) for rope in found), default=0.0)


def carried_groups(found: tuple[ObservedRope, ...], claims: tuple[Claims, ...]) -> tuple[CarriedGroup, ...]:
    """What was found to turn, each source named by the claims where it fits one of them."""
    clues = clues_of(claims, max(FACTOR_TOLERANCE, _magnitude(found)))
    return tuple(_group(rope, clues, len(found) == 1) for rope in found)


def inspect_onnx(model: OnnxModel, references: tuple[Claims, ...] = ()) -> Inspected:
    """What it carries. Raises BadInput for a graph that cannot be walked."""
    found = with_softmax(model, tuple(sorted(observe(model), key=_is_main)))
    pairs = next((len(t.observation.inv_freq) for rope in found for t in rope.buckets), 1)
    own = _own_claims(model, pairs)
    groups = carried_groups(found, (*references, *own))
    # tables that stand there unused are nobody's
    used = [group for group in groups if group.layers != UNTOLD] or list(groups)
    main = main_group(used, (*references, *own)) if used else None
    if main is not None and main.buckets:
        findings = tuple(_findings(main, own, references))
        findings = (*findings, *_layer_findings(main, groups, (*references, *own)))
        groups = (main, *(group for group in groups if group is not main))
    else:
        findings = (
            Finding(
                code="tables-unknown",
                severity="warning",
                message="nothing in the graph shows what it turns by",
                remedy="Compare its logits: yarnconv check.",
            ),
        )
    notes = tuple(dict.fromkeys(note for rope in found for note in rope.notes))
    by = maker(model)
    return Inspected(
        target="onnx",
        title=f"ONNX by {by}",
        identity={"maker": by, "producer": model.proto.producer_name[:100]},
        groups=groups,
        claims=(*own, *references),
        details={},
        findings=without_repeats(findings),
        notes=notes,
    )
