"""Where each of the checkpoint's tensors stands in a GGUF: under which name, with which rows moved."""

from dataclasses import dataclass

from yarnconv.plan import ConversionPlan, TensorBinding
from yarnconv.targets.gguf.runtime import runtime_of

QUERY_KEY_ROLES = frozenset({"query", "query_bias", "key", "key_bias"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlacement:
    """name: the GGUF's. interleave_heads: the size of the heads whose rows move, None if they stay."""

    name: str
    binding: TensorBinding
    interleave_heads: int | None


def placements(plan: ConversionPlan) -> tuple[TensorPlacement, ...]:
    """One for every binding, in their order, by the gguf package's name map."""
    import gguf

    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    runtime, attention = runtime_of(plan), plan.description.layers[0].attention
    name_map = gguf.get_tensor_name_map(architectures[runtime.name], len(plan.description.layers))
    head_dim = attention.head_dim
    # a runtime that rotates adjacent pairs finds the two halves' rows in turn
    moved = attention.pairing == "half" and runtime.pairing == "interleaved"
    interleaved = QUERY_KEY_ROLES if moved else frozenset()

    def place(binding: TensorBinding) -> TensorPlacement:
        name = name_map.get_name(binding.expected.name, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"the gguf package has no name for {binding.expected.name}"
        return TensorPlacement(
            name=name,
            binding=binding,
            interleave_heads=head_dim if binding.expected.role in interleaved else None,
        )

    return tuple(place(binding) for binding in plan.bindings)
