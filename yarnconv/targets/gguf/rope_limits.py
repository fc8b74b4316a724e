"""What acts on a GGUF's RoPE besides the keys that say a plan. Each is read by one architecture or a few, and
no method has it: refused where it does anything.
"""

import math
from dataclasses import replace

from yarnconv.errors import Inexpressible
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope import LONGROPE_TENSORS, MAGNITUDE_TOLERANCE, runtime_magnitudes
from yarnconv.targets.gguf.rope_keys import RopeKeys, rope_keys
from yarnconv.targets.gguf.rope_reading import read_encoding

_TEMPERATURE_ON_ALL = (
    "The file has no yarn_log_multiplier: llama.cpp puts the temperature on queries and keys as a whole too, "
    "which transformers does not. It is kept so."
)


def keys_of(artefact: GgufFile, *, trust_generic_keys: bool = False) -> RopeKeys:
    """What the file's architecture reads, by the file's own window. Raises Inexpressible as `rope_keys`."""
    keys = rope_keys(artefact.architecture, trust_generic_keys=trust_generic_keys)
    window = f"{artefact.architecture}.attention.sliding_window"
    return keys if artefact.scalar(window, int, 0) else keys.without_windows()


def keys_read(artefact: GgufFile, *, trust_generic_keys: bool = False) -> RopeKeys:
    """What the file's architecture reads, in this file.

    Raises Inexpressible for an architecture that is not known or has no RoPE, and for what acts besides.
    """
    keys = keys_of(artefact, trust_generic_keys=trust_generic_keys)
    _refuse_longrope(artefact)
    encoding = read_encoding(artefact, keys)
    scaling_type, factor = encoding.scaling_type, encoding.factor or 1.0
    if keys.latent and scaling_type == "yarn" and not encoding.log_multiplier:
        _, whole = runtime_magnitudes(encoding, keys)
        if not math.isclose(whole, 1.0, rel_tol=MAGNITUDE_TOLERANCE):
            keys = replace(keys, remark=_TEMPERATURE_ON_ALL)
    if keys.alpha and _number(artefact, "scaling.alpha", 0.0) > 0.0:
        raise Inexpressible("enlarges the base on loading", where=_key(artefact, "scaling.alpha"))
    if keys.sliding == "alike" and scaling_type == "none" and factor != 1.0:
        raise Inexpressible(
            f"scales by {factor:g} the layers with a sliding window, and no others",
            where=_key(artefact, "scaling.factor"),
        )
    if keys.ext_factor:
        _refuse_ext_factor(artefact, is_yarn=scaling_type == "yarn")
    return keys


def _key(artefact: GgufFile, name: str) -> str:
    return f"{artefact.architecture}.rope.{name}"


def _number(artefact: GgufFile, name: str, default: float) -> float:
    return float(artefact.scalar(_key(artefact, name), float, default))


def _refuse_longrope(artefact: GgufFile) -> None:
    key = _key(artefact, "scaling.type")
    found = [name for name in LONGROPE_TENSORS if name in artefact.tensors]
    if found or artefact.scalar(key, str) == "longrope":
        raise Inexpressible(
            "it is scaled by longrope, whose two sets of frequencies llama.cpp chooses from by the size of "
            "its context, and which no other method keeps",
            where=found[0] if found else key,
        )


def _refuse_ext_factor(artefact: GgufFile, *, is_yarn: bool) -> None:
    """ext_factor is 1 under YaRN and 0 else, and negative means just that; without YaRN attn_factor acts."""
    ext_factor = _number(artefact, "scaling.yarn_ext_factor", -1.0)
    if ext_factor >= 0.0 and ext_factor != float(is_yarn):
        raise Inexpressible(
            f"is {ext_factor:g}, which blends frequencies as no method does",
            where=_key(artefact, "scaling.yarn_ext_factor"),
        )
    if not is_yarn and _number(artefact, "scaling.yarn_attn_factor", 1.0) != 1.0:
        raise Inexpressible(
            "it carries an attention temperature without YaRN, for which there is no method",
            where=_key(artefact, "scaling.yarn_attn_factor"),
        )
