"""The plan: made once from checkpoint, family and request; every target gets exactly it.

A `RopePlan` is all that editing an existing artefact needs; a `ConversionPlan` adds the description
and a binding for every tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from yarnconv import __version__
from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.errors import BadInput
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import (
    ExpectedTensor,
    Family,
    describe,
    expected_tensors,
    find_family,
    with_defaults,
)
from yarnconv.rope.profiles import Profile, recognise
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.resolve import on_top_of, resolve
from yarnconv.rope.scaling import Scaling, Yarn, method_name
from yarnconv.rope.spelling import ConfigRope, read_rope
from yarnconv.rope.tables import RopeTables, buckets, correction_range, count_regimes
from yarnconv.rope.writing import write_rope

CONVERTIBLE_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeGroup:
    """Layers that share a scaling. `scaling` None: these layers have no RoPE, and no buckets."""

    layers: tuple[int, ...]
    scaling: Scaling | None
    buckets: tuple[RopeTables, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopePlan:
    """The context extension. `main` is the scaling of the layers that are extended."""

    groups: tuple[RopeGroup, ...]
    main: Scaling
    head_dim: int
    original_context: int
    target_context: int
    finetuned: bool
    profile: Profile | None
    warnings: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """What an artefact's name says of the extension, such as -yarn-x16; nothing where there is none."""
        factor = self.main_group.buckets[-1].factor
        return "" if factor == 1.0 else f"-{method_name(self.main)}-x{factor:g}"

    @property
    def main_group(self) -> RopeGroup:
        """The group that carries `main`."""
        return next(group for group in self.groups if group.scaling == self.main)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBinding:
    """An expected tensor and where the checkpoint holds it: None where a config.json alone describes it, as
    only a check of an artefact with weights of its own can do with.
    """

    expected: ExpectedTensor
    held: TensorRef | None

    @property
    def source(self) -> TensorRef:
        """Where the checkpoint holds it, where there is a checkpoint."""
        assert self.held is not None, f"there is no checkpoint that holds {self.expected.name}"
        return self.held


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """Everything a target needs: what to compute with, and with which tensors.

    request: the rope options that `rope` was made with.
    config: config.json with the family's defaults filled in.
    bindings: in the checkpoint's own order.
    """

    request: RopeRequest
    rope: RopePlan
    family: Family
    description: ModelDescription
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    bindings: tuple[TensorBinding, ...]

    def with_untied_head(self) -> "ConversionPlan":
        """The plan of a tied model for an artefact that holds the embedding a second time, as its head."""
        embedding = next(b for b in self.bindings if b.expected.role == "token_embedding")
        head = replace(embedding.expected, role="output_head", name=self.family.tensors["output_head"])
        return replace(
            self,
            description=replace(self.description, tied_embeddings=False),
            bindings=(*self.bindings, replace(embedding, expected=head)),
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """What an artefact records of how it was made. It is never evidence for the artefact."""
        return provenance(self.request, self.rope)


def provenance(request: RopeRequest, rope: RopePlan) -> dict[str, Any]:
    """What an artefact records of how it was made. It is never evidence for the artefact."""
    return {
        "yarnconv_version": __version__,
        "rope_options": request.given,
        "rope_parameters": write_rope(rope.main),
        **rope_facts(rope, with_tables=False),
    }


def _group(layers: tuple[int, ...], scaling: Scaling | None) -> RopeGroup:
    return RopeGroup(layers=layers, scaling=scaling, buckets=() if scaling is None else buckets(scaling))


def plan_rope(config: Mapping[str, Any], request: RopeRequest) -> tuple[RopePlan, ModelDescription, Family]:
    """The RoPE half of the plan, from a config.json alone."""
    family = find_family(config)
    filled = with_defaults(family, config)
    description = describe(family, filled)
    rope = read_rope(filled)
    profile = recognise(filled, rope) if request.use_profile else None
    resolved = resolve(rope, request, profile, description.max_position_embeddings)
    by_type: dict[str | None, list[int]] = {layer_type: [] for layer_type in resolved.groups}
    for index, layer in enumerate(description.layers):
        layer_type = None if None in by_type else layer.attention.layer_type
        if layer_type not in by_type:
            raise BadInput(
                f"layer {index} is of type {layer_type!r}, for which there are no RoPE parameters",
                where="config.json: rope_parameters",
            )
        by_type[layer_type].append(index)
    plan = RopePlan(
        groups=tuple(
            _group(tuple(layers), resolved.groups[layer_type]) for layer_type, layers in by_type.items()
        ),
        main=resolved.main,
        head_dim=description.layers[0].attention.head_dim,
        original_context=resolved.original_context,
        target_context=resolved.target_context,
        finetuned=resolved.finetuned,
        profile=resolved.profile,
        warnings=resolved.warnings,
    )
    return plan, description, family


def plan_artefact(
    own: ConfigRope,
    request: RopeRequest,
    profile: Profile | None,
    *,
    maximum: int,
    layers: int,
    head_dim: int,
) -> RopePlan:
    """The plan of an existing artefact's extension, whose layers share one RoPE.

    own: what it carries. profile: what is known of the model beyond that, if anything. maximum: the context
    of an artefact that carries no scaling. A factor counts on top of the artefact's own (`on_top_of`).
    """
    carried = own.groups[None]
    assert carried is not None, "an artefact whose layers have no RoPE has no plan"
    request, notes = on_top_of(carried, request)
    resolved = resolve(own, request, profile, maximum)
    return RopePlan(
        groups=(_group(tuple(range(layers)), resolved.main),),
        main=resolved.main,
        head_dim=head_dim,
        original_context=resolved.original_context,
        target_context=resolved.target_context,
        finetuned=resolved.finetuned,
        profile=resolved.profile,
        warnings=(*notes, *resolved.warnings),
    )


def _ties_embeddings(checkpoint: Checkpoint, family: Family, description: ModelDescription) -> bool:
    """Whether the output head is the embedding. A checkpoint that holds both, and holds them different,
    is not tied whatever its config says: transformers loads it so.
    """
    head = checkpoint.tensors.get(family.tensors["output_head"])
    embedding = checkpoint.tensors.get(family.tensors["token_embedding"])
    if not description.tied_embeddings or head is None or embedding is None:
        return description.tied_embeddings
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    step = 2**24
    return all(
        head.file.view(head.offset + start, min(step, head.nbytes - start))
        == embedding.file.view(embedding.offset + start, min(step, head.nbytes - start))
        for start in range(0, head.nbytes, step)
    )


def _is_leftover(name: str, family: Family, layers: int, tied: bool) -> bool:
    """Whether the family names this tensor as one that old checkpoints carry for nothing. With tied
    embeddings a copy of them as output head is one too.
    """
    patterns = [*family.leftovers, *([family.tensors["output_head"]] if tied else [])]
    for pattern in patterns:
        before, _, after = pattern.partition("{layer}")
        if name == pattern:
            return True
        middle = name[len(before) : len(name) - len(after)]
        if (
            after
            and name.startswith(before)
            and name.endswith(after)
            and middle.isdecimal()
            and len(middle) <= len(str(layers))
            and int(middle) < layers
        ):
            return True
    return False


def bind_tensors(
    checkpoint: Checkpoint, family: Family, description: ModelDescription
) -> tuple[TensorBinding, ...]:
    """Bind every expected tensor; one missing, left over, misshapen or of a strange dtype is an error. Those
    of a config.json alone are bound to nothing.
    """
    if checkpoint.described:
        described = expected_tensors(family, description)
        return tuple(TensorBinding(expected=expected, held=None) for expected in described)
    bindings: dict[str, TensorBinding] = {}
    for expected in expected_tensors(family, description):
        source = checkpoint.tensors.get(expected.name)
        if source is None:
            raise BadInput(
                f"the tensor {expected.name} is missing",
                where=str(checkpoint.directory),
                fix=f"A {family.model_type} model of {len(description.layers)} layers needs it: "
                "the checkpoint is incomplete, or config.json is another model's.",
            )
        if source.shape != expected.shape:
            raise BadInput(
                f"{expected.name} has shape {list(source.shape)}, but config.json makes it "
                f"{list(expected.shape)}",
                where=source.file.path.name,
            )
        if source.dtype not in CONVERTIBLE_DTYPES:
            raise BadInput(
                f"{expected.name} has dtype {source.dtype}",
                where=source.file.path.name,
                fix=f"Only {', '.join(CONVERTIBLE_DTYPES)} weights are read; convert from the "
                "unquantised checkpoint.",
            )
        bindings[expected.name] = TensorBinding(expected=expected, held=source)
    for name in checkpoint.tensors:
        layers = len(description.layers)
        if name not in bindings and not _is_leftover(name, family, layers, description.tied_embeddings):
            raise BadInput(
                f"the tensor {name} is left over: nothing in a {family.model_type} model takes it",
                where=checkpoint.tensors[name].file.path.name,
                fix="A part of the model would be lost; it is not converted.",
            )
    return tuple(bindings[name] for name in checkpoint.tensors if name in bindings)


def plan_conversion(checkpoint: Checkpoint, request: RopeRequest) -> ConversionPlan:
    """The whole plan of a checkpoint's conversion."""
    if checkpoint.config.get("quantization_config"):
        raise BadInput(
            "the checkpoint is quantised",
            where="config.json: quantization_config",
            fix="Convert from the unquantised checkpoint.",
        )
    rope, description, family = plan_rope(checkpoint.config, request)
    tied = _ties_embeddings(checkpoint, family, description)
    description = replace(description, tied_embeddings=tied)
    return ConversionPlan(
        request=request,
        rope=rope,
        family=family,
        description=description,
        config=with_defaults(family, checkpoint.config),
        checkpoint=checkpoint,
        bindings=bind_tensors(checkpoint, family, description),
    )


def _bucket_facts(tables: RopeTables) -> dict[str, Any]:
    return {
        "factor": tables.factor,
        "attention_factor": tables.attention_factor,
        "softmax_scale_multiplier": tables.softmax_multiplier,
        "inv_freq": tables.inv_freq.tolist(),
    }


def rope_facts(plan: RopePlan, *, with_tables: bool = True) -> dict[str, Any]:
    """The facts that `plan --json` and `inspect --json` share; they are those of the scaled group."""
    scaling, longest = plan.main, plan.main_group.buckets[-1]
    yarn = scaling if isinstance(scaling, Yarn) else None
    low, high = correction_range(yarn) if yarn else (None, None)
    facts: dict[str, Any] = {
        "method": method_name(scaling),
        "factor": longest.factor,
        "original_context": plan.original_context,
        "target_context": plan.target_context,
        "rope_theta": scaling.theta,
        "rotary_dim": scaling.rotary_dim,
        "head_dim": plan.head_dim,
        "beta_fast": yarn.beta_fast if yarn else None,
        "beta_slow": yarn.beta_slow if yarn else None,
        "truncate": yarn.truncate if yarn else None,
        "attention_factor": longest.attention_factor,
        "softmax_scale_multiplier": longest.softmax_multiplier,
        "low": low,
        "high": high,
        "regimes": count_regimes(scaling),
        "finetuned": plan.finetuned,
        "profile": plan.profile.name if plan.profile else None,
        "warnings": list(plan.warnings),
    }
    if with_tables:
        facts["inv_freq"] = longest.inv_freq.tolist()
        facts["groups"] = [
            {
                "layers": list(group.layers),
                "method": method_name(group.scaling) if group.scaling else None,
                "buckets": [_bucket_facts(tables) for tables in group.buckets],
            }
            for group in plan.groups
        ]
    return facts
