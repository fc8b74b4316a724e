"""What a config.json asks of RoPE, and what of it transformers does not hear."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.model.describe import describe, with_defaults
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import find_family, text_part
from yarnconv.rope.identify import FACTOR_TOLERANCE, Fit, temperature_of
from yarnconv.rope.observation import Observation
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import DynamicYarn, NtkAware, Scaling, Stretched, Yarn, is_dynamic
from yarnconv.rope.spelling import ConfigRope, read_rope
from yarnconv.rope.tables import bucket_scalings, buckets, extended_context
from yarnconv.rope_plan import (
    RopeGroup,
    RopePlan,
    filled_config,
    layer_ranges,
    plan_of_any,
    resolve_config,
)
from yarnconv.targets.hf.files import CONFIG_FILE
from yarnconv.targets.inspection.carried_rope import CarriedBucket, CarriedGroup, Claims, Inspected
from yarnconv.targets.inspection.findings import Finding
from yarnconv.targets.inspection.rope_findings import claim_findings

EXACT = 1e-12  # of numbers that were computed here


def _filled(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with its family's defaults, where it is one of a known family."""
    try:
        return filled_config(config)
    except BadInput:
        return config


def claims_of(config: Mapping[str, Any], request: RopeRequest, source: str) -> Claims:
    """What an artefact of this checkpoint should carry under the rope options, of a family known or not."""
    filled = _filled(config)
    rope = read_rope(filled)
    resolved = resolve_config(filled, rope, request, filled["max_position_embeddings"])
    # a context that was made up of another is nothing that anybody says
    known = not rope.original_notes or request.asks_for_something
    return Claims(
        source=source,
        scaling=resolved.main,
        original_context=resolved.original_context if known else None,
        context=resolved.target_context if known else None,
        pairing=_pairing(config),
        kinds=len(rope.groups),
    )


def _pairing(config: Mapping[str, Any]) -> str | None:
    """Which dimensions turn together, of a family that is known."""
    try:
        family = find_family(config)
        return describe(family, with_defaults(family, config)).layers[0].attention.pairing
    except (BadInput, Inexpressible):
        return None


def read_config(path: Path) -> dict[str, Any]:
    """A config.json, or that of a directory."""
    return read_json_object(path / CONFIG_FILE if path.is_dir() else path)


def carried_group(scaling: Scaling | None, layers: str, source: str) -> CarriedGroup:
    """A scaling as what an artefact would carry of it, without a fault."""
    if scaling is None:
        return CarriedGroup(layers=layers, source=source, buckets=())
    return CarriedGroup(
        layers=layers,
        source=source,
        buckets=tuple(
            CarriedBucket(
                observation=Observation(
                    inv_freq=table.inv_freq,
                    uncertainty=np.full(len(table.inv_freq), EXACT),
                    attention_factor=table.attention_factor,
                    softmax_multiplier=table.softmax_multiplier,
                ),
                fit=Fit(
                    scaling=static,
                    temperature=temperature_of(table.attention_factor, static, FACTOR_TOLERANCE),
                    attention_factor=table.attention_factor,
                    residual=0.0,
                ),
            )
            for table, static in zip(buckets(scaling), bucket_scalings(scaling), strict=True)
        ),
    )


def _ignored(what: str, remedy: str) -> Finding:
    return Finding(code="config-ignored", severity="warning", message=what, remedy=remedy)


def _spelling_findings(scaling: Scaling, rope: ConfigRope) -> Iterator[Finding]:
    """Keys and types that do not do what they seem to."""
    if rope.original_notes:
        yield Finding(
            code="original-context-unknown",
            severity="warning",
            message="config.json does not say which context the model was trained with",
            remedy="Write original_max_position_embeddings into it.",
        )
    for note in rope.notes:
        if note not in rope.original_notes:
            yield _ignored(note, "Correct the config.")
    unknown_type = isinstance(scaling, DynamicYarn) or type(scaling) is NtkAware
    if unknown_type:
        yield _ignored(
            "transformers does not know this type of scaling and fails to load it",
            "Write a checkpoint for transformers with `yarnconv hf`.",
        )
    if isinstance(scaling, Yarn) and bool(scaling.mscale) != bool(scaling.mscale_all_dim):
        alone = "mscale" if scaling.mscale else "mscale_all_dim"
        if scaling.attention_factor is None:
            yield _ignored(
                f"{alone} stands alone, and transformers takes 0.1 ln s + 1 instead",
                "Give both, or attention_factor.",
            )


def _context_findings(scaling: Scaling, maximum: int) -> Iterator[Finding]:
    """max_position_embeddings may be the original or the extended context; anything else is odd."""
    if not isinstance(scaling, Stretched) or scaling.factor == 1.0 or is_dynamic(scaling):
        return
    reached = extended_context(scaling)
    if maximum in {scaling.original_context, reached} or abs(maximum - reached) < scaling.factor:
        return
    yield Finding(
        code="context-length",
        severity="warning",
        message=(
            f"max_position_embeddings is {maximum}, and {scaling.original_context} x {scaling.factor:g} is "
            f"{reached}"
        ),
        remedy=f"Write {reached}, which is what servers go by.",
    )


def _plan(config: Mapping[str, Any]) -> tuple[RopePlan | None, ModelDescription | None]:
    """The plan that it carries, where it says enough for one, and what is known of the model."""
    try:
        return plan_of_any(config, RopeRequest())
    except BadInput:
        return None, None


def _named_layers(group: RopeGroup, description: ModelDescription | None) -> str:
    """Which layers, for people."""
    if description is None:
        kind = "" if group.layer_type is None else f" ({group.layer_type})"
        return f"{layer_ranges(group.layers)}{kind}"
    return "; ".join(
        f"{layer_ranges(kind.layers)} ({kind.layer_type}{'' if kind.window is None else f', {kind.window}'})"
        for kind in description.kinds_of(group.layers)
    )


def _named_groups(
    rope: ConfigRope, plan: RopePlan | None, description: ModelDescription | None
) -> list[tuple[str, Scaling | None]]:
    """The layers of each kind, for people, with their scaling."""
    if plan is None:
        return [("all layers" if kind is None else f"{kind} layers", s) for kind, s in rope.groups.items()]
    named = [(_named_layers(group, description), group.scaling) for group in plan.groups]
    alike = len(named) == 1 and (description is None or len(description.kinds_of(plan.groups[0].layers)) == 1)
    return [("all layers", plan.main)] if alike else named


def inspect_checkpoint(path: Path, references: tuple[Claims, ...] = ()) -> Inspected:
    """What a checkpoint asks for. Raises BadInput where its config cannot be read."""
    config = read_config(path)
    filled = _filled(config)
    rope = read_rope(filled)
    (plan, description), maximum = _plan(config), filled["max_position_embeddings"]
    named = _named_groups(rope, plan, description)
    main = plan.main if plan is not None else next((s for _, s in named if s is not None), None)
    if main is None:
        raise BadInput("no layers have RoPE", where="config.json: rope_parameters")
    groups = tuple(
        carried_group(scaling, layers, CONFIG_FILE)
        for layers, scaling in sorted(named, key=lambda item: item[1] != main)
    )
    findings = [*_spelling_findings(main, rope), *_context_findings(main, maximum)]
    for reference in references:
        findings += claim_findings(reference, groups[0])
    return Inspected(
        target="checkpoint",
        title=f"config.json of a checkpoint, {str(config.get('model_type'))[:60]}",
        identity={"model_type": config.get("model_type")},
        groups=groups,
        claims=references,
        details={
            key: text_part(config)[key]
            for key in ("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters")
            if key in text_part(config)
        },
        findings=tuple(findings),
        plan=plan,
        notes=() if plan is None or description is not None else plan.warnings[:1],
    )
