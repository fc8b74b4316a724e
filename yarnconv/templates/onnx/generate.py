"""Runs the model beside this file with ONNX Runtime: `python generate.py "prompt"`.

Needs generation.py beside it, and onnxruntime (or onnxruntime-gpu), numpy and tokenizers. Text goes to stdout
as it comes, figures to stderr.

A model with several buckets of frequencies chooses by the context that the request declares (prompt and new
tokens): the length of the KV buffer where the model writes into one in place, the input `rope_context` where
it does not. Without --max-new-tokens and --max-context the context grows with the answer, in steps. Where it
leaves its bucket all tokens are run again: keys turned by the old frequencies are wrong beside the new ones.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # Python leaves it out where it is told to be safe
try:
    import numpy as np
    import onnxruntime

    import generation
    from generation import Refusal
except ImportError as missing:
    install = "pip install onnxruntime numpy tokenizers"
    print(f"error: {missing}. Needed are generation.py beside this file, and {install}", file=sys.stderr)
    raise SystemExit(4) from None

MODEL, CONFIG = "model.onnx", "genai_config.json"
# ONNX's name of a type: how numpy holds it, and its number in ONNX
TYPES = {"float": (np.float32, 1), "float16": (np.float16, 10), "bfloat16": (np.uint16, 16)}


def read_end_tokens(directory: Path) -> set[int]:
    """The tokens that end an answer."""
    try:
        found = json.loads((directory / CONFIG).read_text("utf-8"))["model"].get("eos_token_id", [])
    except (KeyError, OSError, ValueError) as error:
        raise Refusal(f"{directory / CONFIG}: cannot be read ({error})") from None
    return set(found if isinstance(found, list) else [found])


class Model(generation.Model):
    """A session, and what the model says of itself."""

    def __init__(
        self, directory: Path, provider: str = "cpu", threads: int = 0, accurate: bool = False
    ) -> None:
        self.end_tokens = read_end_tokens(directory)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns that rope_context is an input, which it is meant to be
        self.run_options = onnxruntime.RunOptions()
        self.run_options.log_severity_level = 2  # and that a cache is copied, which none should be
        if accurate:  # 4-bit matrices times float32 activations, not 8-bit ones
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        wanted = f"{provider.upper()}ExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            raise Refusal(f"this onnxruntime has no {wanted}. Install it: pip install onnxruntime-gpu", 4)
        self.device = provider
        try:
            self.session = onnxruntime.InferenceSession(directory / MODEL, options, providers=[wanted])
        except Exception as error:  # its exceptions have no common base
            version, reason = onnxruntime.__version__, str(error).strip().splitlines()[0]
            raise Refusal(f"{directory / MODEL}: onnxruntime {version} does not load it ({reason})") from None
        if wanted not in self.session.get_providers():
            raise Refusal(f"{wanted} does not start on this machine. Try --provider cpu")
        self.slots = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        self.storage, self.element = TYPES[self.slots[0].type[len("tensor(") : -1]]
        self.vocabulary = self.session.get_outputs()[0].shape[-1]
        try:
            facts = json.loads(self.session.get_modelmeta().custom_metadata_map["yarnconv.plan"])["graph"]
            self.in_place: bool = facts["kv"] == "in-place"
            self.max_context = facts["max_context"]
            self.buckets = facts["bucket_contexts"]
            self.takes_context = len(self.buckets) > 1 and not self.in_place
        except (KeyError, TypeError, ValueError):
            raise Refusal(f"{directory / MODEL}: no yarnconv.plan in its metadata says what it is") from None

    def to_device(self, array: Any) -> Any:
        """An OrtValue of the cache's type where the model runs."""
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, self.element, self.device)
        if array.size:
            value.update_inplace(self._over(array))
        return value

    def from_device(self, value: Any) -> Any:
        """A cache as an array."""
        array = np.empty(value.shape(), self.storage)
        self._over(array).update_inplace(value)
        return array

    def _over(self, array: Any) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, self.element)


class Conversation(generation.Conversation):
    """Tokens, and the caches that the session writes."""

    model: Model

    def __init__(self, model: Model, context: int | None = None, chunk: int = 512) -> None:
        super().__init__(model, context, chunk)
        self.cache: dict[str, Any] = {}

    def _make_room(self, context: int) -> None:
        """Caches of `context` slots that hold what was run; those that grow by themselves begin empty."""
        if not self.model.in_place and self.cached:
            return
        for slot in self.model.slots:
            _, heads, _, width = slot.shape
            # zeros, because a masked slot's value counts 0 times: a NaN there would stay one
            room = np.zeros((1, heads, context if self.model.in_place else 0, width), self.model.storage)
            if self.cached:
                kept = self.model.from_device(self.cache[slot.name])
                room[:, :, : self.cached] = kept[:, :, : self.cached]
            self.cache[slot.name] = self.model.to_device(room)

    def _run(self, tokens: list[int]) -> Any:
        """Run the next tokens. Returns the logits after the last one."""
        total = self.cached + len(tokens)
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.cached, total, dtype=np.int64)[None],
        }
        if self.model.takes_context:
            inputs["rope_context"] = np.array(self.declared, np.int64)
        binding = self.model.session.io_binding()
        for name, array in inputs.items():  # bind_cpu_input does not know inputs that have a default
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        binding.bind_output("logits")
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
            present = name.replace("past_key_values", "present")
            if self.model.in_place:  # one buffer is both, so that nothing is copied
                binding.bind_ortvalue_output(present, value)
            else:
                binding.bind_output(present, self.model.device)
        self.model.session.run_with_iobinding(binding, self.model.run_options)
        logits, *caches = binding.get_outputs()
        self.cache = dict(zip(self.cache, caches, strict=True))
        self.cached = total
        return logits.numpy()[0, -1]


def load(arguments: argparse.Namespace, directory: Path) -> Model:
    """The model in a session of its own."""
    return Model(directory, arguments.provider, arguments.threads, arguments.accurate)


def command_line() -> argparse.ArgumentParser:
    """The options, with ONNX Runtime's."""
    parser = generation.command_line()
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=generation.count, default=0, help="processors to use [all]")
    parser.add_argument("--accurate", action="store_true", help="multiply 4-bit matrices with float32")
    return parser


if __name__ == "__main__":
    sys.exit(generation.main(command_line(), Path(__file__).resolve().parent, load, Conversation))
