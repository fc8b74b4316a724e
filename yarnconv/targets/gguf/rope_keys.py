"""Which RoPE keys and tensors each of llama.cpp's architectures reads (its `src/models/`, October 2026).

A key that a runtime does not read changes nothing and a tensor it does not expect fails the load, so what can
be said to an architecture depends on this table and not on what a GGUF could hold.
"""

from dataclasses import dataclass, replace
from typing import Literal

from yarnconv.errors import Inexpressible

RUNTIME_BETA_FAST = 32.0
RUNTIME_BETA_SLOW = 1.0
SLIDING_BASE = 10000.0  # of layers with a sliding window that turn by themselves, where no key says it
RUNTIME_COEFFICIENT = 0.1  # of ln s, in the temperature that llama.cpp takes by itself

Sliding = Literal["alike", "tempered", "apart"]
LogMultiplier = Literal["deepseek2", "deepseek32", "mistral3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeKeys:
    """What an architecture makes of RoPE keys beyond those that all of them read: freq_base, scaling.type,
    scaling.factor, scaling.original_context_length and scaling.attn_factor.

    rope_freqs: loads the tensor `rope_freqs.weight`, one divisor per pair of dimensions, and turns by it.
    longrope: loads its tensors, a short and a long set of divisors, under that type.
    betas: reads scaling.yarn_beta_fast and yarn_beta_slow; beta_fast is what it takes where there is none.
    log_multiplier: whose reading of scaling.yarn_log_multiplier it has; of the first two, multi-head latent
        attention, it changes the softmax scale of the whole head too.
    sliding: layers with a sliding window turn like all others ("alike"), keep their own frequencies but take
        attn_factor ("tempered"), or take nothing but freq_base ("apart"); None where there are none.
    window_base: turns those layers by freq_base_swa; where that is left out, by freq_base if they turn alike,
        else by SLIDING_BASE. An architecture may load the key and not turn by it.
    finetuned_is_switch: scaling.finetuned = false turns RoPE off.
    ext_factor: reads scaling.yarn_ext_factor and yarn_attn_factor, by which it goes before the type.
    alpha: reads scaling.alpha, by which it enlarges freq_base.
    counts_from_original: attention.temperature_scale grows with the position in original contexts.
    remark: what an extension should say of it.
    """

    name: str
    rope_freqs: bool = False
    longrope: bool = False
    betas: bool = False
    beta_fast: float = RUNTIME_BETA_FAST
    log_multiplier: LogMultiplier | None = None
    sliding: Sliding | None = None
    window_base: bool = False
    finetuned_is_switch: bool = False
    ext_factor: bool = False
    alpha: bool = False
    counts_from_original: bool = False
    remark: str | None = None

    @property
    def latent(self) -> bool:
        """Whether it is one of multi-head latent attention."""
        return self.log_multiplier in {"deepseek2", "deepseek32"}

    def without_windows(self) -> "RopeKeys":
        """Where no layer has a sliding window: what turns otherwise with one is not there."""
        if self.sliding not in {"tempered", "apart"}:
            return self
        return replace(self, sliding=None, window_base=False, remark=None)


_IMAGES = "Positions of images are scaled like those of text."
_NOT_ALL_TURN = "Every fourth layer has no RoPE, and nothing changes there."
_OWN_WINDOW = "Layers with a sliding window keep their own RoPE."
_ALL_TURN = "Layers with a sliding window are scaled like all others."
_THOSE_TURN = "Where layers have a sliding window, those are scaled and no others."

# those that read the common keys for all their layers alike, and no more
_PLAIN = (
    *("arctic", "bailingmoe", "bailingmoe2", "codeshell", "command-r", "dbrx", "deepseek", "dots1", "dream"),
    *("ernie4_5", "ernie4_5-moe", "falcon", "gemma", "glm4", "glm4moe", "gptneox", "grovemoe"),
    *("hunyuan-moe", "internlm2", "llada-moe", "maincoder", "minimax-m2", "nemotron", "olmo"),
    *("olmoe", "orion", "phi2", "plamo", "qwen", "qwen2", "qwen2moe", "qwen3", "qwen3moe"),
    *("qwen3next", "seed_oss", "stablelm", "starcoder2", "xverse"),
)
_WITH_TENSOR = ("arcee", "exaone")
_WITH_LONGROPE = ("apertus", "deci", "granitemoe", "llama", "minicpm")
_OF_IMAGES = ("qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe")

ROPE_KEYS = {
    keys.name: keys
    for keys in (
        *(RopeKeys(name=name) for name in _PLAIN),
        *(RopeKeys(name=name, rope_freqs=True) for name in _WITH_TENSOR),
        *(RopeKeys(name=name, rope_freqs=True, longrope=True) for name in _WITH_LONGROPE),
        *(RopeKeys(name=name, longrope=True) for name in ("phi3", "phimoe")),
        RopeKeys(name="granite", rope_freqs=True, longrope=True, finetuned_is_switch=True),
        RopeKeys(name="granitehybrid", rope_freqs=True, finetuned_is_switch=True),
        RopeKeys(name="granite_swa", rope_freqs=True, longrope=True, sliding="alike", remark=_ALL_TURN),
        *(RopeKeys(name=name, remark=_IMAGES) for name in _OF_IMAGES),
        RopeKeys(name="smollm3", remark=_NOT_ALL_TURN),
        RopeKeys(
            name="llama4",
            rope_freqs=True,
            sliding="alike",
            window_base=True,
            remark=f"{_ALL_TURN} {_NOT_ALL_TURN}",
        ),
        RopeKeys(name="gpt-oss", sliding="alike", window_base=True, remark=_ALL_TURN),
        RopeKeys(name="exaone4", rope_freqs=True, sliding="alike", remark=_THOSE_TURN),
        RopeKeys(name="gemma2", sliding="alike", window_base=True, remark=_ALL_TURN),
        RopeKeys(name="gemma3", sliding="tempered", window_base=True, remark=_OWN_WINDOW),
        RopeKeys(name="olmo2", sliding="apart", remark=_OWN_WINDOW),
        RopeKeys(name="hunyuan-dense", alpha=True),
        RopeKeys(name="grok", betas=True, beta_fast=8.0, ext_factor=True),
        RopeKeys(
            name="mistral3",
            rope_freqs=True,
            longrope=True,
            betas=True,
            log_multiplier="mistral3",
            counts_from_original=True,
        ),
        RopeKeys(name="deepseek2", log_multiplier="deepseek2"),
        RopeKeys(name="deepseek32", log_multiplier="deepseek32"),
        RopeKeys(name="mistral4", log_multiplier="deepseek32"),
    )
}

WITHOUT_ROPE = frozenset(
    {
        *("arwkv7", "bloom", "clip", "glm5-next", "gpt2", "gptj", "jais", "jamba", "jina-bert-v2", "kimi-k3"),
        *("kimi-linear", "mamba", "mamba2", "mpt", "nemotron_h", "nemotron_h_moe", "refact", "rwkv6"),
        *("rwkv6qwen2", "rwkv7", "t5", "t5encoder", "wavtokenizer-dec"),
    }
)


def rope_keys(architecture: str, *, trust_generic_keys: bool = False) -> RopeKeys:
    """What an architecture reads. Raises Inexpressible for one that has no RoPE, and for one that is not
    known here unless it is to be trusted with the keys that most read.
    """
    if architecture in WITHOUT_ROPE:
        raise Inexpressible(
            f"llama.cpp's {architecture} architecture has no RoPE that could be extended",
            where="general.architecture",
        )
    known = ROPE_KEYS.get(architecture)
    if known is not None:
        return known
    if trust_generic_keys:
        remark = (
            f"Nobody has looked up what llama.cpp's {architecture} architecture reads: that it reads the "
            "common keys, for all its layers, is trusted and not known."
        )
        return replace(RopeKeys(name=architecture), remark=remark)
    raise Inexpressible(
        f"which RoPE keys llama.cpp's {architecture} architecture reads is not known here",
        where="general.architecture",
        fix="If you know that it reads the common ones for all its layers, add --trust-generic-keys.",
    )
