"""The plan: made once from checkpoint, family and request; every target gets exactly it.

A `RopePlan` is all that editing an existing artefact needs; a `ConversionPlan` adds the description
and a binding for every tensor.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.checkpoint.quantised import Quantisation, find_source, read_quantisation
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import StackedTensor, TensorSource, TurnedTensor, row_count
from yarnconv.errors import BadInput
from yarnconv.model.config_values import counted
from yarnconv.model.describe import with_defaults
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import Family, text_part
from yarnconv.model.tensors import ExpectedTensor, expected_tensors
from yarnconv.rope.request import RopeRequest
from yarnconv.rope_plan import RopePlan, plan_rope, provenance

LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
CONVERTIBLE_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBinding:
    """An expected tensor and where the checkpoint holds it: None where a config.json alone describes it, as
    only a check of an artefact with weights of its own can do with.
    """

    expected: ExpectedTensor
    held: TensorSource | None

    @property
    def source(self) -> TensorSource:
        """Where the checkpoint holds it, where there is a checkpoint."""
        assert self.held is not None, f"there is no checkpoint that holds {self.expected.name}"
        return self.held


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


def _parts(checkpoint: Checkpoint, patterns: Sequence[str], layer: int | None, count: int) -> list[str]:
    """The names of what a tensor is stored as: of each expert in turn, where it is stored by expert."""
    names = [pattern.replace("{layer}", str(layer)) for pattern in patterns]
    if not any("{expert}" in name for name in names):
        return names
    return [name.replace("{expert}", str(expert)) for expert in range(count) for name in names]


def _stacked(
    checkpoint: Checkpoint, expected: ExpectedTensor, names: Sequence[str], quantisation: Quantisation
) -> TensorSource | None:
    """A tensor that is stored under other names; None where the first of them is not there."""
    if find_source(checkpoint.tensors, names[0], quantisation) is None:
        return None
    parts: list[TensorSource] = []
    for name in names:
        part = find_source(checkpoint.tensors, name, quantisation)
        if part is None:
            what = f"{names[0]} is there, and {name} is missing"
            raise BadInput(what, where=str(checkpoint.directory), fix="The checkpoint is incomplete.")
        first = parts[0] if parts else part
        if (part.dtype, part.shape) != (first.dtype, first.shape):
            differ = f"{name} is {part.dtype} {list(part.shape)}, "
            differ += f"and {names[0]} {first.dtype} {list(first.shape)}"
            raise BadInput(differ, where=part.refs[0].file.path.name)
        parts.append(part)
    # of a misshapen part its own shape is what is wrong, and not the whole's
    own, count = parts[0].shape, len(parts)
    is_whole = len(own) == 2 and (count * own[0], own[1]) == (row_count(expected.shape), expected.shape[-1])
    shape = expected.shape if is_whole else own if count == 1 else (count, *own)
    if shape == own:
        return parts[0]
    return StackedTensor(name=expected.name, shape=shape, parts=tuple(parts))


def _find(
    checkpoint: Checkpoint, family: Family, expected: ExpectedTensor, quantisation: Quantisation
) -> TensorSource | None:
    """Where a tensor's values are, [out, in]."""
    source = find_source(checkpoint.tensors, expected.name, quantisation)
    experts = family.structure.experts
    if source is not None:
        turned = experts is not None and experts.turned and len(expected.shape) == 3
        is_file = isinstance(source, TensorRef)  # codes lie [out, in] always
        return TurnedTensor(of=source) if turned and is_file and len(source.shape) == 3 else source
    if (patterns := family.stored.get(expected.role)) is None:
        return None
    names = _parts(checkpoint, patterns, expected.layer, expected.shape[0])
    return _stacked(checkpoint, expected, names, quantisation)


def _bound(
    checkpoint: Checkpoint, family: Family, expected: ExpectedTensor, quantisation: Quantisation, layers: int
) -> TensorBinding:
    source = _find(checkpoint, family, expected, quantisation)
    if source is None:
        stored = family.stored.get(expected.role, ())
        named = "".join(f", or as {name.replace('{layer}', str(expected.layer))}" for name in stored[:1])
        raise BadInput(
            f"the tensor {expected.name} is missing{named}",
            where=str(checkpoint.directory),
            fix=f"A {family.model_type} model of {layers} layers needs it: "
            "the checkpoint is incomplete, or config.json is another model's.",
        )
    where = source.refs[0].file.path.name
    if source.shape != expected.shape:
        raise BadInput(
            f"{source.name} has shape {list(source.shape)}, but config.json makes it {list(expected.shape)}",
            where=where,
        )
    if source.dtype not in CONVERTIBLE_DTYPES:
        raise BadInput(
            f"{source.name} has dtype {source.dtype}",
            where=where,
            fix=f"Only {', '.join(CONVERTIBLE_DTYPES)} weights are read; convert from the "
            "unquantised checkpoint.",
        )
    return TensorBinding(expected=expected, held=source)


def _is_beyond(name: str, layers: int, extra: int) -> bool:
    """Whether a tensor is of one of the layers behind the model's."""
    found = LAYER.match(name)
    return found is not None and layers <= int(found[1]) < layers + extra


def bind_tensors(
    checkpoint: Checkpoint,
    family: Family,
    description: ModelDescription,
    quantisation: Quantisation,
    extra_layers: int,
) -> tuple[TensorBinding, ...]:
    """Bind every expected tensor; one missing, left over, misshapen or of a strange dtype is an error. Those
    of a config.json alone are bound to nothing. extra_layers: those behind the last that nothing needs.
    """
    layers = len(description.layers)
    if checkpoint.described:
        described = expected_tensors(family, description)
        return tuple(TensorBinding(expected=expected, held=None) for expected in described)
    bindings = [
        _bound(checkpoint, family, expected, quantisation, layers)
        for expected in expected_tensors(family, description)
    ]
    used = {ref.name for binding in bindings for ref in binding.source.refs}
    for name in checkpoint.tensors:
        if name in used or _is_beyond(name, layers, extra_layers):
            continue
        if not _is_leftover(name, family, layers, description.tied_embeddings):
            raise BadInput(
                f"the tensor {name} is left over: nothing in a {family.model_type} model takes it",
                where=checkpoint.tensors[name].file.path.name,
                fix="A part of the model would be lost; it is not converted.",
            )
    order = {name: number for number, name in enumerate(checkpoint.tensors)}
    return tuple(sorted(bindings, key=lambda binding: order[binding.source.refs[0].name]))


def sources_of(plan: "ConversionPlan", checkpoint: Checkpoint) -> dict[str, TensorSource]:
    """Where another checkpoint of the plan's model holds each tensor, by the plan's names. Raises BadInput as
    `bind_tensors`.
    """
    quantisation = read_quantisation(checkpoint.config)
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
    configs = (checkpoint.config, text_part(checkpoint.config))
    quantisation = read_quantisation(next((c for c in configs if c.get("quantization_config")), {}))
    checkpoint = _text_tensors(checkpoint)
    tied = _ties_embeddings(checkpoint, family, description)
    description = replace(description, tied_embeddings=tied)
    config = with_defaults(family, checkpoint.config)
    extra = family.structure.extra_layers
    extra_layers = counted(config, extra)
    layers = len(description.layers)
    if beyond := sum(_is_beyond(name, layers, extra_layers) for name in checkpoint.tensors):
        warning = f"Left out: {beyond} tensors of layers that predict further tokens, behind the {layers}."
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
