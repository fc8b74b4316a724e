"""What a GGUF says of its RoPE, as llama.cpp reads it."""

from dataclasses import dataclass

from yarnconv.plan import RopePlan
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf.carried import plan_carried, read_carried
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope_limits import keys_read
from yarnconv.targets.record import RECORD_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """plan: the one that its keys and tensors carry. keys: those of RoPE and the context, as they stand in
    the file. weight_type: of most of its weights. findings: what does not agree.
    """

    architecture: str
    weight_type: str
    parts: int
    plan: RopePlan
    keys: dict[str, object]
    findings: tuple[str, ...]


def inspect_gguf(artefact: GgufFile) -> GgufFacts:
    """Raises BadInput for keys that nothing reads, Inexpressible where what they say has no name."""
    name = artefact.architecture
    carried = read_carried(artefact, keys_read(artefact, trust_generic_keys=True))
    shown = [key for key in artefact.packed if key.startswith(f"{name}.rope.")]
    if RECORD_KEY in artefact.packed:
        shown.append("yarnconv.version")
    return GgufFacts(
        architecture=name,
        weight_type=artefact.weight_type,
        parts=len(artefact.parts),
        plan=plan_carried(carried, RopeRequest()),
        keys={key: artefact.value(key) for key in (f"{name}.context_length", *shown)},
        findings=carried.findings,
    )
