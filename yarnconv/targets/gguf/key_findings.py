"""RoPE keys and tensors of a GGUF that llama.cpp does not read, and what it takes where a key is missing."""

import math
from collections.abc import Iterator

from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope import LONGROPE_TENSORS, ROPE_FREQS, RopeEncoding
from yarnconv.targets.gguf.rope_keys import ROPE_KEYS, RUNTIME_BETA_SLOW, RopeKeys
from yarnconv.targets.gguf.shown_keys import shown_value
from yarnconv.targets.inspection.findings import Finding

_READ_BY_ALL = frozenset(
    {
        *("freq_base", "freq_base_swa", "dimension_count", "dimension_count_swa", "dimension_sections"),
        *("scale_linear", "scaling.type", "scaling.factor", "scaling.original_context_length"),
        *("scaling.attn_factor", "scaling.finetuned"),
    }
)
BETAS = ("scaling.yarn_beta_fast", "scaling.yarn_beta_slow")
EXT_FACTORS = ("scaling.yarn_ext_factor", "scaling.yarn_attn_factor")
LOG_MULTIPLIER = "scaling.yarn_log_multiplier"


def _read(keys: RopeKeys) -> frozenset[str]:
    """Names of keys, without the prefix, that the architecture reads."""
    also: list[str] = []
    also += BETAS if keys.betas else ()
    also += EXT_FACTORS if keys.ext_factor else ()
    also += [LOG_MULTIPLIER] if keys.log_multiplier else ()
    also += ["scaling.alpha"] if keys.alpha else ()
    return _READ_BY_ALL.union(also)


def _unread(artefact: GgufFile, keys: RopeKeys) -> dict[str, object]:
    """Keys of RoPE that are not read, by name, with their values; another architecture's too."""
    prefix, read = f"{artefact.architecture}.rope.", _read(keys)
    return {
        key: shown_value(artefact, key)
        for key in artefact.packed
        if ".rope." in key and not (key.startswith(prefix) and key.removeprefix(prefix) in read)
    }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_harmless(name: str, value: object, keys: RopeKeys) -> bool:
    """Whether it says what the runtime does anyway."""
    taken = dict(zip(BETAS, (keys.beta_fast, RUNTIME_BETA_SLOW), strict=True))
    taken |= {"scaling.yarn_attn_factor": 1.0, "scaling.yarn_ext_factor": 1.0}
    number = _number(value)
    return number is not None and name in taken and math.isclose(number, taken[name], rel_tol=1e-6)


def unread_findings(artefact: GgufFile, keys: RopeKeys) -> Iterator[Finding]:
    """What is written and has no effect."""
    if artefact.architecture not in ROPE_KEYS:
        return  # what this architecture reads is not known
    prefix = f"{artefact.architecture}.rope."
    unread = {
        key: value
        for key, value in _unread(artefact, keys).items()
        if not _is_harmless(key.removeprefix(prefix), value, keys)
    }
    betas = [key for key in unread if key.removeprefix(prefix) in BETAS]
    if betas:
        yield Finding(
            code="betas-ignored",
            severity="error",
            message=(
                f"{' and '.join(betas)} are written, and llama.cpp's {keys.name} architecture always takes "
                f"{keys.beta_fast:g} and {RUNTIME_BETA_SLOW:g}"
            ),
            remedy="Convert the checkpoint with yarnconv, which says other betas exactly or refuses.",
        )
    temperature = f"{prefix}{EXT_FACTORS[1]}"
    if temperature in unread:
        yield Finding(
            code="attention-factor-dropped",
            severity="error",
            message=(
                f"{temperature} is {unread[temperature]!s:.80}, and llama.cpp's {keys.name} architecture "
                "never reads it: it takes 1 + 0.1 ln s"
            ),
            remedy="Convert the checkpoint with yarnconv, which says it by scaling.attn_factor.",
        )
    if others := sorted(unread.keys() - {*betas, temperature}):
        yield Finding(
            code="keys-never-read",
            severity="warning",
            message=f"llama.cpp's {keys.name} architecture never reads {', '.join(others)[:400]}",
            remedy="They change nothing. If they were meant to, convert the checkpoint with yarnconv.",
        )
    if ROPE_FREQS in artefact.tensors and not keys.rope_freqs:
        yield Finding(
            code="keys-never-read",
            severity="error",
            message=(
                f"llama.cpp's {keys.name} architecture has no {ROPE_FREQS}: the file fails to load with it"
            ),
            remedy="Convert the checkpoint with yarnconv.",
        )


def taken_instead_findings(artefact: GgufFile, encoding: RopeEncoding, keys: RopeKeys) -> Iterator[Finding]:
    """What llama.cpp takes where a key is left out, and should not have to."""
    key = f"{artefact.architecture}.rope.scaling.original_context_length"
    if encoding.scaling_type == "longrope" and not any(name in artefact.tensors for name in LONGROPE_TENSORS):
        yield Finding(
            code="plain-rope",
            severity="error",
            message=f"its scaling is longrope without {LONGROPE_TENSORS[0]}: llama.cpp turns by plain RoPE",
            remedy="Convert the checkpoint again with a converter that writes its two sets of factors.",
        )
    if (encoding.factor or 1.0) == 1.0:
        return
    if encoding.scaling_type == "linear" and key not in artefact.packed:
        yield Finding(
            code="original-context-unknown",
            severity="note",
            message=f"{key} is missing: llama.cpp needs it not, but nothing says where the extension begins",
            remedy="Give --original-context where the file is extended further.",
        )
    if encoding.scaling_type != "yarn":
        return
    if key not in artefact.packed:
        yield Finding(
            code="original-from-extended",
            severity="error",
            message=(
                f"{key} is missing: llama.cpp takes the stated context, {encoding.original_context_length}, "
                "for the one that the model was trained with"
            ),
            remedy="Set the key: yarnconv gguf FILE --original-context N, with --factor, writes it.",
        )
    if keys.latent and not encoding.log_multiplier:
        yield Finding(
            code="softmax-factor-missing",
            severity="error",
            message=(
                f"{artefact.architecture}.rope.{LOG_MULTIPLIER} is missing: llama.cpp puts its own "
                "temperature on queries and keys as a whole, and not the model's softmax factor"
            ),
            remedy="Convert the checkpoint with a tool that writes mscale_all_dim into that key.",
        )
