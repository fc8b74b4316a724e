"""What llama.cpp's own source says that each of its architectures reads of RoPE, in the table's terms.

Nothing is compiled or guessed: an architecture's class is looked up, the functions that load its keys and its
tensors (its own or the class's that it derives from), and every call that turns something in its graph.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from yarnconv.targets.gguf.rope_keys import RUNTIME_BETA_FAST, RopeKeys

COMMON = "n_ctx_orig freq_base freq_scale ext_factor attn_factor beta_fast beta_slow"
BY_LAYER = "n_ctx_orig freq_base_l freq_scale_l ext_factor attn_factor beta_fast beta_slow"
UNSCALED = "n_ctx_orig freq_base 1.0 0.0 1.0 beta_fast beta_slow"
# arguments that calls may have, by what the table says of layers with a sliding window
ARGUMENTS = {
    None: {COMMON},
    "alike": {COMMON, BY_LAYER},
    "tempered": {BY_LAYER},
    "apart": {COMMON, UNSCALED},
}
OTHER_MODEL = "ocr_rope_type"  # a branch of deepseek2's graph for deepseek2-ocr
ROPE_CALL = re.compile(r"\bggml_rope_(?:ext|multi)\s*\(")
# keys of RoPE that change nothing of what a plan says
BESIDE = {"LLM_KV_ROPE_DIMENSION_SECTIONS", "LLM_KV_ROPE_FREQ_BASE_SWA"}


@dataclass(frozen=True)
class RopeCall:
    """factors: the tensor of divisors, or nullptr. arguments: the last seven, by name."""

    factors: str
    rope_type: str
    arguments: str


def balanced(text: str, start: int, pair: str) -> str:
    """What stands between the bracket at `start` and its own end."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == pair[0]) - (text[position] == pair[1])
        if depth == 0:
            return text[start + 1 : position]
    raise ValueError("not closed")


def rope_calls(text: str) -> list[RopeCall]:
    calls = []
    for match in ROPE_CALL.finditer(text):
        arguments, depth = [""], 0
        for character in balanced(text, match.end() - 1, "()"):
            depth += (character == "(") - (character == ")")
            if character == "," and depth == 0:
                arguments.append("")
            else:
                arguments[-1] += character
        arguments = [" ".join(argument.split()) for argument in arguments]
        calls.append(
            RopeCall(factors=arguments[3], rope_type=arguments[-8], arguments=" ".join(arguments[-7:]))
        )
    return calls


class RopeSource:
    """The source tree's `src`, or one that a test has changed: files by name."""

    def __init__(self, tree: Path, **changed: str) -> None:
        self._models = {path.stem: path.read_text() for path in (tree / "src/models").glob("*.cpp")}
        self._models |= changed
        self._header = (tree / "src/models/models.h").read_text()
        self._model = (tree / "src/llama-model.cpp").read_text()
        self._context = (tree / "src/llama-context.cpp").read_text()
        self.graph = (tree / "src/llama-graph.cpp").read_text()
        self._arch = (tree / "src/llama-arch.cpp").read_text()

    @cached_property
    def names(self) -> dict[str, str]:
        """llama.cpp's name -> its constant."""
        table = balanced(self._arch, self._arch.index("{", self._arch.index("LLM_ARCH_NAMES")), "{}")
        found = dict(re.findall(r"\{\s*LLM_ARCH_(\w+),\s*\"([^\"]+)\"", table))
        return {name: constant for constant, name in found.items() if constant != "UNKNOWN"}

    @cached_property
    def without_rope(self) -> set[str]:
        """Those of LLAMA_ROPE_TYPE_NONE."""
        start = self._model.index("llama_rope_type llama_model_rope_type(")
        cases = self._model[start : self._model.index("return LLAMA_ROPE_TYPE_NONE", start)]
        constants = set(re.findall(r"case LLM_ARCH_(\w+):", cases))
        return {name for name, constant in self.names.items() if constant in constants}

    def _class(self, name: str) -> str:
        case = rf"case LLM_ARCH_{self.names[name]}:\s*return new (llama_model_\w+)\("
        return re.search(case, self._model)[1]

    def _declaration(self, name: str) -> tuple[str, str]:
        """(the class that it derives from, its body)."""
        found = re.search(rf"\nstruct {name}\s*:\s*public\s+(\w+)\s*", self._header)
        return found[1], balanced(self._header, found.end(), "{}")

    def _function(self, owner: str, function: str) -> str:
        """A member function's body, its own or inherited; empty where there is none."""
        while owner.startswith("llama_model_") and owner != "llama_model_base":
            start = f"\nvoid {owner}::{function}("
            for text in self._models.values():
                if start in text:
                    return balanced(text, text.index("{", text.index(start)), "{}")
            owner = self._declaration(owner)[0]
        return ""

    def _graph_file(self, owner: str) -> str:
        """The file of the class whose graph it builds."""
        body = self._declaration(owner)[1]
        reused = re.search(r"using graph\s*=\s*(llama_model_\w+)::graph", body)
        if reused:
            return self._graph_file(reused[1])
        files = [text for text in self._models.values() if f"{owner}::graph::graph" in text]
        files = files or [text for text in self._models.values() if f"{owner}::build_arch_graph" in text]
        assert len(files) == 1, owner
        return files[0]

    def calls(self, name: str) -> list[RopeCall]:
        """Of its graph."""
        found = rope_calls(self._graph_file(self._class(name)))
        return [call for call in found if call.rope_type != OTHER_MODEL]

    def uses_the_temperature_besides(self, name: str) -> bool:
        """Whether its graph computes with attn_factor outside of RoPE."""
        text = re.sub(r"//[^\n]*", "", self._graph_file(self._class(name)))
        for match in reversed(list(ROPE_CALL.finditer(text))):
            end = match.end() + len(balanced(text, match.end() - 1, "()"))
            text = text[: match.start()] + text[end:]
        return bool(re.search(r"\battn_factor\b", text))

    def keys(self, name: str) -> set[str]:
        """The constants of all keys of RoPE that it reads beyond those that all of them read."""
        return set(re.findall(r"LLM_KV_ROPE_\w+", self._function(self._class(name), "load_arch_hparams")))

    def leaves_layers_out(self, name: str) -> bool:
        """Whether some of its layers have no RoPE."""
        return "n_no_rope_layer_step" in self._graph_file(self._class(name))

    def turns_by_longrope_of_any_type(self, name: str) -> bool:
        """Whether it loads longrope's tensors without looking at the type."""
        tensors = self._function(self._class(name), "load_arch_tensors")
        return "ROPE_FACTORS_LONG" in tensors and "SCALING_TYPE_LONGROPE" not in tensors

    def read(self, name: str) -> RopeKeys:
        """The table's entry, but for its remark."""
        owner = self._class(name)
        keys, loaded = self._function(owner, "load_arch_hparams"), self._function(owner, "load_arch_tensors")
        own_beta = re.search(r"hparams\.yarn_beta_fast\s*=\s*([\d.]+)f", keys)
        return RopeKeys(
            name=name,
            rope_freqs="LLM_TENSOR_ROPE_FREQS" in loaded
            and all(call.factors == "rope_factors" for call in self.calls(name)),
            longrope="LLM_TENSOR_ROPE_FACTORS_LONG" in loaded
            and all(call.factors == "rope_factors" for call in self.calls(name)),
            betas="LLM_KV_ROPE_SCALING_YARN_BETA_FAST" in keys,
            beta_fast=float(own_beta[1]) if own_beta else RUNTIME_BETA_FAST,
            log_multiplier=self._log_multiplier(name, keys),
            sliding=self._sliding(name, keys),
            window_base="LLM_KV_ROPE_FREQ_BASE_SWA" in keys
            and any(call.arguments == BY_LAYER for call in self.calls(name)),
            finetuned_is_switch=bool(re.search(r"fill\(hparams\.rope_pattern[^;]*rope_finetuned", keys)),
            ext_factor="LLM_KV_ROPE_SCALING_YARN_EXT_FACTOR" in keys,
            alpha="rope_scaling_alpha" in keys,
            counts_from_original="n_attn_temp_floor_scale = hparams.n_ctx_orig_yarn" in keys,
        )

    def _log_multiplier(self, name: str, keys: str) -> str | None:
        if "LLM_KV_ROPE_SCALING_YARN_LOG_MUL" not in keys:
            return None
        if "hparams.rope_yarn_log_mul /= 0.1f" not in keys:
            return "mistral3"
        apart = re.findall(r"model\.arch == LLM_ARCH_(\w+) && mscale_all_dims", self._context)
        return "deepseek2" if apart == [self.names[name]] else "deepseek32"

    def _sliding(self, name: str, keys: str) -> str | None:
        if not re.search(r"swa_type\s*=\s*LLAMA_SWA_TYPE_(?!NONE)", keys):
            return None
        arguments = {call.arguments for call in self.calls(name)}
        if UNSCALED in arguments:
            return "apart"
        if arguments == {COMMON}:
            return "alike"
        same = re.search(r"freq_scale_train_swa\s*=\s*hparams\.rope_freq_scale_train;", keys)
        return "alike" if same else "tempered"


def wrong(source: RopeSource, entry: RopeKeys) -> list[str]:
    """What an entry of the table says and the source does not."""
    read = source.read(entry.name)
    found = [
        f"{field}: {getattr(entry, field)} in the table, {getattr(read, field)} in the source"
        for field in RopeKeys.__slots__
        if field not in {"name", "remark"} and getattr(entry, field) != getattr(read, field)
    ]
    calls = source.calls(entry.name)
    if not calls:
        found.append("nothing turns")
    found += sorted(
        f"called with {call.arguments}" for call in calls if call.arguments not in ARGUMENTS[entry.sliding]
    )
    known = BESIDE if entry.sliding else BESIDE - {"LLM_KV_ROPE_FREQ_BASE_SWA"}
    known = known | {
        *(("LLM_KV_ROPE_SCALING_FINETUNED",) if entry.finetuned_is_switch else ()),
        *(("LLM_KV_ROPE_SCALING_YARN_LOG_MUL",) if entry.log_multiplier else ()),
        *(f"LLM_KV_ROPE_SCALING_YARN_BETA_{end}" for end in ("FAST", "SLOW") if entry.betas),
        *(f"LLM_KV_ROPE_SCALING_YARN_{end}_FACTOR" for end in ("EXT", "ATTN") if entry.ext_factor),
    }
    found += sorted(f"reads {key}" for key in source.keys(entry.name) - known)
    if source.uses_the_temperature_besides(entry.name) != entry.latent:
        found.append("attn_factor outside of RoPE")
    if source.leaves_layers_out(entry.name) != ("no RoPE" in (entry.remark or "")):
        found.append("the remark on layers without RoPE")
    if bool(entry.sliding) != ("sliding window" in (entry.remark or "")):
        found.append("the remark on layers with a sliding window")
    return found
