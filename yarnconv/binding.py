"""Which of a checkpoint's tensors is which of a model's: every one that a description calls for is bound, and
none is left over.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.checkpoint.quantised import Quantisation, find_source
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import StackedTensor, TensorSource, TurnedTensor, row_count
from yarnconv.errors import BadInput
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import Family
from yarnconv.model.tensors import ExpectedTensor, expected_tensors

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


def _parts(patterns: Sequence[str], layer: int | None, count: int) -> list[str]:
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
    names = _parts(patterns, expected.layer, expected.shape[0])
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


def _layer_of(name: str) -> int | None:
    found = LAYER.match(name)
    return None if found is None else int(found[1])


def predicting_tensors(checkpoint: Checkpoint, layers: int, extra: int) -> frozenset[str]:
    """The tensors of layers that predict further tokens, behind the model's; each has a projection of an
    embedding beside a hidden state, by which it is known from a layer of a model whose config miscounts.
    """
    marked = {_layer_of(name) for name in checkpoint.tensors if name.endswith(".eh_proj.weight")}
    beyond = {index for index in marked if index is not None and layers <= index < layers + extra}
    return frozenset(name for name in checkpoint.tensors if _layer_of(name) in beyond)


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
    predicting = predicting_tensors(checkpoint, layers, extra_layers)
    # by the names in the files, which differ from the text model's where another model wraps it
    used = {ref.name for binding in bindings for ref in binding.source.refs}
    for name, ref in checkpoint.tensors.items():
        if ref.name in used or name in predicting:
            continue
        if not _is_leftover(name, family, layers, description.tied_embeddings):
            raise BadInput(
                f"the tensor {name} is left over: nothing in a {family.model_type} model takes it",
                where=ref.file.path.name,
                fix="A part of the model would be lost; it is not converted.",
            )
    order = {ref.name: number for number, ref in enumerate(checkpoint.tensors.values())}
    return tuple(sorted(bindings, key=lambda binding: order[binding.source.refs[0].name]))
