"""The RoPE that a GGUF carries, as llama.cpp will read it, held against a plan key by key.

A key that is left out counts as the value that llama.cpp takes instead (`llama_model::load_hparams`), so
that two spellings of the same thing agree.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from yarnconv.plan import ConversionPlan
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.gguf.block_keys import block_keys, read_block_key
from yarnconv.targets.gguf.file_format import same
from yarnconv.targets.gguf.layered_rope import keys_of_plan, layered_encodings
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope import (
    FREQUENCY_TOLERANCE,
    LONGROPE_LONG,
    LONGROPE_SHORT,
    ROPE_FREQS,
    RopeEncoding,
)
from yarnconv.targets.gguf.rope_keys import RUNTIME_BETA_SLOW, SLIDING_BASE, RopeKeys
from yarnconv.targets.gguf.runtime import RuntimeArchitecture

RUNTIME_FREQ_BASE = 10000.0


def read_encoding(artefact: GgufFile, keys: RopeKeys) -> RopeEncoding:
    """The RoPE keys and the frequency tensor, with llama.cpp's own value where one is left out."""

    def number(name: str, default: float | None, read: bool = True) -> float | None:
        return artefact.scalar(f"{prefix}.{name}", float, default) if read else None

    prefix = f"{artefact.architecture}.rope"
    scaling_type = artefact.scalar(f"{prefix}.scaling.type", str, "linear")
    factor = artefact.scalar(
        f"{prefix}.scaling.factor", float, artefact.scalar(f"{prefix}.scale_linear", float, 0.0)
    )
    context = artefact.scalar(f"{artefact.architecture}.context_length", int, 0)

    def divisors(name: str, read: bool = True) -> Float32Array | None:
        stored = artefact.tensors.get(name) if read else None
        return None if stored is None else stored.rows(slice(None))[0]

    freq_base = number("freq_base", RUNTIME_FREQ_BASE) or RUNTIME_FREQ_BASE
    unsaid = freq_base if keys.sliding == "alike" else SLIDING_BASE
    sliding_base = number("freq_base_swa", unsaid, keys.window_base)
    if keys.sliding == "alike" and same(sliding_base, freq_base):
        sliding_base = None  # none of their own
    return RopeEncoding(
        freq_base=freq_base,
        scaling_type=scaling_type,
        factor=factor or 1.0,
        original_context_length=artefact.scalar(f"{prefix}.scaling.original_context_length", int, context),
        attention_factor=number("scaling.attn_factor", 1.0),
        beta_fast=number("scaling.yarn_beta_fast", keys.beta_fast, keys.betas),
        beta_slow=number("scaling.yarn_beta_slow", RUNTIME_BETA_SLOW, keys.betas),
        log_multiplier=number("scaling.yarn_log_multiplier", None, keys.log_multiplier is not None),
        freq_base_sliding=sliding_base,
        rope_freqs=divisors(ROPE_FREQS),
        short_divisors=divisors(LONGROPE_SHORT, keys.longrope),
        long_divisors=divisors(LONGROPE_LONG, keys.longrope),
    )


def _effective(encoding: RopeEncoding, *, counting: bool) -> dict[str, float | int | str]:
    """What the runtime computes with; scaling by 1 is none, whatever it is called. counting: whether queries
    grow with their position in original contexts, under any scaling.
    """
    factor = 1.0 if encoding.factor is None else encoding.factor
    scaling_type = encoding.scaling_type or "none"
    if scaling_type == "linear" and factor == 1.0:
        scaling_type = "none"
    if encoding.long_divisors is not None:
        scaling_type = "longrope"  # by which phi3 turns whatever its type
    facts: dict[str, float | int | str] = {
        "freq_base": encoding.freq_base,
        "scaling.type": scaling_type,
        "scaling.attn_factor": 1.0 if encoding.attention_factor is None else encoding.attention_factor,
    }
    if scaling_type != "none":
        facts["scaling.factor"] = factor
    if encoding.freq_base_sliding is not None:
        facts["freq_base_swa"] = encoding.freq_base_sliding
    if counting or scaling_type in {"yarn", "longrope"}:
        facts["scaling.original_context_length"] = encoding.original_context_length or 0
    used = {"yarn": ("beta_fast", "beta_slow", "log_multiplier"), "none": ()}
    for name in used.get(scaling_type, ("log_multiplier",)):
        if (value := getattr(encoding, name)) is not None:
            facts[f"scaling.yarn_{name}"] = value
    return facts


def _shown(value: object, missing: str = "absent") -> str:
    if value is None:
        return missing
    if isinstance(value, list):  # one for each layer
        return "".join("1" if one else "0" for one in value)
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _compare_encoding(
    expected: RopeEncoding, found: RopeEncoding, architecture: str, *, counting: bool
) -> Iterator[FactComparison]:
    wanted, carried = (_effective(encoding, counting=counting) for encoding in (expected, found))
    for name in {**wanted, **carried}:
        yield FactComparison(
            key=f"{architecture}.rope.{name}",
            expected=_shown(wanted.get(name), "not used"),
            found=_shown(carried.get(name), "not used"),
            agrees=same(wanted.get(name), carried.get(name)),
        )
    for name in {**expected.tensors, **found.tensors}:
        yield _compare_divisors(name, expected.tensors.get(name), found.tensors.get(name))


def _compare_divisors(name: str, expected: Float32Array | None, found: Float32Array | None) -> FactComparison:
    agrees, difference = False, ""
    if expected is not None and found is not None and expected.shape == found.shape:
        with np.errstate(all="ignore"):
            worst = float(np.max(np.abs(found / expected - 1.0)))
        agrees, difference = worst <= FREQUENCY_TOLERANCE, f", off by up to {worst:.2g}"
    return FactComparison(
        key=name,
        expected="absent" if expected is None else f"{len(expected)} divisors",
        found="absent" if found is None else f"{len(found)} divisors{difference}",
        agrees=agrees,
    )


def _compare_scalars(expected: Mapping[str, object], artefact: GgufFile) -> Iterator[FactComparison]:
    for key, wanted in expected.items():
        found = artefact.scalar(key, type(wanted))
        yield FactComparison(
            key=key, expected=_shown(wanted), found=_shown(found), agrees=same(wanted, found)
        )


def _compare_block(
    plan: ConversionPlan, runtime: RuntimeArchitecture, artefact: GgufFile
) -> Iterator[FactComparison]:
    for key in block_keys(plan.description, runtime):
        found = read_block_key(artefact, key)
        yield FactComparison(
            key=f"{runtime.name}.{key.name}",
            expected=_shown(key.value),
            found=_shown(found),
            agrees=same(key.value, found),
        )


def compare_metadata(
    plan: ConversionPlan, runtime: RuntimeArchitecture, artefact: GgufFile
) -> tuple[FactComparison, ...]:
    """Every RoPE key, the dimensions that RoPE rests on, and what else the block is built by, against the
    plan. runtime: the file's architecture.

    Where a plan can be said in several exact ways, the file is held against the nearest. Raises
    Inexpressible where the architecture cannot say the plan at all.
    """
    name, keys = runtime.name, keys_of_plan(plan, runtime)
    found = read_encoding(artefact, keys)
    exact = layered_encodings(plan, runtime)
    # a file without the tensor was not meant to be one with it, however few keys that would leave to differ
    alike = [e for e in exact if (e.rope_freqs is None) == (found.rope_freqs is None)]
    # read_block_key's fact says whether those of the file do
    grows = plan.description.layers[0].attention.query_growth is not None
    counting = grows and keys.counts_from_original
    spelled = min(
        (tuple(_compare_encoding(one, found, name, counting=counting)) for one in alike or exact),
        key=lambda comparison: sum(not fact.agrees for fact in comparison),
    )
    dimensions = {
        f"{name}.context_length": plan.rope.target_context,
        f"{name}.block_count": len(plan.description.layers) + artefact.predicting_layers,
    }
    rotary_key, finetuned_key = f"{name}.rope.dimension_count", f"{name}.rope.scaling.finetuned"
    if rotary_key in artefact.packed:  # left out, it is the head's size, as is the plan's
        dimensions[rotary_key] = plan.rope.main.rotary_dim
    # where it switches RoPE it says nothing of the model
    unsaid = plan.rope.finetuned if keys.finetuned_is_switch else False
    finetuned = artefact.scalar(finetuned_key, bool, unsaid)
    return (
        *_compare_scalars(dimensions, artefact),
        *spelled,
        *_compare_block(plan, runtime, artefact),
        FactComparison(
            key=finetuned_key,
            expected=_shown(plan.rope.finetuned),
            found=_shown(finetuned),
            agrees=finetuned == plan.rope.finetuned,
            decisive=False,
        ),
    )
