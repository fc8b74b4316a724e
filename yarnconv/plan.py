"""The plan: made once from checkpoint, family and request; every target gets exactly it.

A `RopePlan` is all that editing an existing artefact needs; a `ConversionPlan` adds the description
and a binding for every tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from yarnconv.binding import TensorBinding, bind_tensors, predicting_tensors
from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.checkpoint.quantised import Quantisation, read_quantisation
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import TensorSource
from yarnconv.errors import BadInput
from yarnconv.model.config_values import counted
from yarnconv.model.describe import with_defaults
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import Family, text_part
from yarnconv.rope.request import RopeRequest
from yarnconv.rope_plan import RopePlan, plan_rope, provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """What an artefact computes otherwise than was asked, because that was allowed. said: for people. facts:
    what was measured of it, to be recorded.
    """

    name: str
    said: str
    facts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """Everything a target needs: what to compute with, and with which tensors.

    request: the rope options that `rope` was made with.
    config: config.json with the family's defaults filled in.
    bindings: in the checkpoint's own order. departure: from what was asked, if any.
    """

    request: RopeRequest
    rope: RopePlan
    family: Family
    description: ModelDescription
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    bindings: tuple[TensorBinding, ...]
    departure: Departure | None = None

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
        made = provenance(self.request, self.rope)
        if self.departure is not None:
            made["departures"] = {self.departure.name: dict(self.departure.facts)}
        return made


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


def _quantisation_of(checkpoint: Checkpoint) -> Quantisation:
    """As config.json says it, or its part about the text model."""
    configs = (checkpoint.config, text_part(checkpoint.config))
    return read_quantisation(next((c for c in configs if c.get("quantization_config")), {}))


def sources_of(plan: "ConversionPlan", checkpoint: Checkpoint) -> dict[str, TensorSource]:
    """Where another checkpoint of the plan's model holds each tensor, by the plan's names. Raises BadInput as
    `bind_tensors`.
    """
    quantisation = _quantisation_of(checkpoint)
    extra = counted(plan.config, plan.family.structure.extra_layers)
    bindings = bind_tensors(checkpoint, plan.family, plan.description, quantisation, extra)
    return {binding.expected.name: binding.source for binding in bindings}


# What stands in front of the tensors of a text model among other parts, as transformers 4 has it (and 5, on
# disk) and 5 (in memory); and of those parts.
TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
PARTS = ("vision_tower.", "multi_modal_projector.", "mm_projector.")
OTHER_PARTS = (*PARTS, *(f"model.{part}" for part in PARTS))


def _text_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its text model's tensors under that model's own names, and no others."""
    if text_part(checkpoint.config) is checkpoint.config:
        return checkpoint
    found: dict[str, TensorRef] = {}
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(OTHER_PARTS):
            continue
        prefix = next((prefix for prefix in TEXT_PREFIXES if name.startswith(prefix)), None)
        own = name if prefix is None else TEXT_PREFIXES[prefix] + name.removeprefix(prefix)
        if own in found:
            raise BadInput(f"{name} stands for {own}, as another tensor does", where=tensor.file.path.name)
        found[own] = tensor
    return replace(checkpoint, tensors=found)


def plan_conversion(checkpoint: Checkpoint, request: RopeRequest) -> ConversionPlan:
    """The whole plan of a checkpoint's conversion."""
    rope, description, family = plan_rope(checkpoint.config, request)
    quantisation = _quantisation_of(checkpoint)
    checkpoint = _text_tensors(checkpoint)
    tied = _ties_embeddings(checkpoint, family, description)
    description = replace(description, tied_embeddings=tied)
    config = with_defaults(family, checkpoint.config)
    extra_layers = counted(config, family.structure.extra_layers)
    layers = len(description.layers)
    if beyond := predicting_tensors(checkpoint, layers, extra_layers):
        warning = (
            f"Left out: {len(beyond)} tensors of layers that predict further tokens, behind the {layers}."
        )
        rope = replace(rope, warnings=(*rope.warnings, warning))
    return ConversionPlan(
        request=request,
        rope=rope,
        family=family,
        description=description,
        config=config,
        checkpoint=checkpoint,
        bindings=bind_tensors(checkpoint, family, description, quantisation, extra_layers),
    )
