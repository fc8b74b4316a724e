"""Runs the model beside this file with ONNX Runtime: `python generate.py "prompt"`.

Needs onnxruntime (or onnxruntime-gpu), numpy and tokenizers. Text goes to stdout as it comes, figures to
stderr.

A model with several buckets of frequencies chooses by the context that the request declares (prompt and new
tokens): the length of the KV buffer where the model writes into one in place, the input `rope_context` where
it does not. Without --max-new-tokens and --max-context the context grows with the answer, in steps. Where it
leaves its bucket all tokens are run again: keys turned by the old frequencies are wrong beside the new ones.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer
except ImportError as missing:
    print(f"error: {missing}. Install it: pip install onnxruntime numpy tokenizers", file=sys.stderr)
    raise SystemExit(4) from None

MODEL, CONFIG, TOKENIZER = "model.onnx", "genai_config.json", "tokenizer.json"
STEP = 256  # slots by which a context grows that was not declared
LONGEST_CHARACTER = 8  # tokens; what is no character by then never will be one
# ONNX's name of a type: how numpy holds it, and its number in ONNX
TYPES = {"float": (np.float32, 1), "float16": (np.float16, 10), "bfloat16": (np.uint16, 16)}


class Refusal(Exception):
    """What was found and what to do about it; ends the command with `code`."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class Model:
    """A session, and what the model says of itself.

    buckets: the longest context that each set of frequencies serves, ascending.
    """

    def __init__(
        self, directory: Path, provider: str = "cpu", threads: int = 0, accurate: bool = False
    ) -> None:
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
        self.vocabulary: int = self.session.get_outputs()[0].shape[-1]
        try:
            facts = json.loads(self.session.get_modelmeta().custom_metadata_map["yarnconv.plan"])["graph"]
            self.in_place: bool = facts["kv"] == "in-place"
            self.max_context: int = facts["max_context"]
            self.buckets: list[int] = facts["bucket_contexts"]
            self.takes_context = len(self.buckets) > 1 and not self.in_place
        except (KeyError, TypeError, ValueError):
            raise Refusal(f"{directory / MODEL}: no yarnconv.plan in its metadata says what it is") from None

    def bucket(self, context: int) -> int:
        """Which set of frequencies a context gets."""
        return sum(reach < context for reach in self.buckets[:-1])

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


class Conversation:
    """Tokens, and the keys and values of those that were run.

    context: the longest it may become, declared to the model at once; None lets it grow to the model's own.
    chunk: tokens run at a time. reruns: how often all tokens were run again for another bucket.
    """

    def __init__(self, model: Model, context: int | None = None, chunk: int = 512) -> None:
        self.model = model
        self.grows = context is None
        self.limit = model.max_context if context is None else min(context, model.max_context)
        self.chunk = chunk
        self.tokens: list[int] = []
        self.declared = 0
        self.reruns = 0
        self.cached = 0  # of the tokens, that many were run
        self.cache: dict[str, Any] = {}
        self._logits: Any = None

    def next_logits(self) -> Any:
        """float32[vocabulary]: what may follow the tokens. Runs those that were not run yet."""
        if len(self.tokens) > self.limit:
            raise Refusal(f"{len(self.tokens)} tokens do not fit into the context of {self.limit}")
        if len(self.tokens) > self.declared:
            needed = min(len(self.tokens) + 1, self.limit)  # room for the answer
            reach = self.model.buckets[self.model.bucket(needed)]
            self.declare(min(needed + STEP, reach, self.limit) if self.grows else self.limit)
        while self.cached < len(self.tokens):
            self._logits = self._run(self.tokens[self.cached : self.cached + self.chunk])
        if not np.isfinite(self._logits).all():
            raise Refusal(f"the model's answer after {self.cached} tokens is no number", 70)
        return self._logits

    def declare(self, context: int) -> None:
        """Tell the model of a longer context. What was run stays only if the frequencies do."""
        if self.cached and self.model.bucket(context) != self.model.bucket(self.declared):
            self.cached = 0
            self.reruns += 1
        self._make_room(context)
        self.declared = context

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


Choose = Callable[[Any], int]


def greedy(logits: Any) -> int:
    """The likeliest token."""
    return int(logits.argmax())


def sampler(temperature: float, top_p: float, seed: int | None) -> Choose:
    """Draws from the fewest tokens that together have the probability top_p."""
    generator = np.random.default_rng(None if seed is None else seed % 2**64)

    def choose(logits: Any) -> int:
        shares = np.exp((logits - logits.max()).astype(np.float64) / temperature)
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1]
        return int(generator.choice(kept, p=shares[kept] / shares[kept].sum()))

    return choose


def generate(
    conversation: Conversation,
    count: int | None = None,
    choose: Choose = greedy,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """New tokens, appended to the conversation as they come, until one is in `stop`, `count` are made or the
    context is full.
    """
    made = 0
    while len(conversation.tokens) < conversation.limit and made != count:
        token = choose(conversation.next_logits())
        conversation.tokens.append(token)
        made += 1
        yield token
        if token in stop:
            return


class TextStream:
    """Text of tokens as they come; a character that is not whole yet waits for the rest of it."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._before = prompt  # blanks depend on what stands before, so the last text is decoded again
        self._shown = len(tokenizer.decode(prompt).rstrip("\N{REPLACEMENT CHARACTER}"))
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """What can be shown now."""
        self._new.append(token)
        text = self._tokenizer.decode([*self._before, *self._new])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._new) < LONGEST_CHARACTER:
            return ""
        return self.rest()

    def rest(self) -> str:
        """What waits, as it is."""
        text: str = self._tokenizer.decode([*self._before, *self._new])[self._shown :]
        self._before, self._new = self._new, []
        self._shown = len(self._tokenizer.decode(self._before))
        return text


def read_prompt(arguments: argparse.Namespace, tokenizer: Any, vocabulary: int) -> list[int]:
    """The prompt's tokens."""
    if arguments.tokens is not None:
        words = arguments.tokens.replace(",", " ").split()
        tokens = [int(word) if word.isdecimal() and len(word) < 10 else vocabulary for word in words]
        for word, token in zip(words, tokens, strict=True):
            if token >= vocabulary:
                raise Refusal(f"--tokens: {word[:40]!r} is no token id below {vocabulary}")
    else:
        try:
            file = arguments.prompt_file
            text = arguments.prompt if file is None else file.read_text("utf-8")
            tokens = tokenizer.encode(text.encode().decode()).ids  # an argument's stray bytes end here
        except OSError as error:
            raise Refusal(f"{arguments.prompt_file}: {error.strerror}") from None
        except UnicodeError:
            raise Refusal("the prompt is not UTF-8") from None
    if not tokens:
        raise Refusal("the prompt is empty")
    return tokens


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer beside the model."""
    path = directory / TOKENIZER
    if not path.is_file():
        raise Refusal(f"{path}: no such file. Give --tokens with --print-tokens, or put the tokenizer there")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # what it raises is a bare Exception
        raise Refusal(f"{path}: {error}") from None


def read_end_tokens(directory: Path) -> set[int]:
    """The tokens that end an answer."""
    try:
        found = json.loads((directory / CONFIG).read_text("utf-8"))["model"].get("eos_token_id", [])
    except (KeyError, OSError, ValueError) as error:
        raise Refusal(f"{directory / CONFIG}: cannot be read ({error})") from None
    return set(found if isinstance(found, list) else [found])


def number(text: str) -> float:
    """Above 0, for argparse, which makes a message of a ValueError and of this function's name."""
    if not 0.0 < float(text) < 1e6:
        raise ValueError
    return float(text)


def count(text: str) -> int:
    """Whole and above 0, likewise."""
    if not 0 < int(text) < 2**31:
        raise ValueError
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Generate text with the model beside this file.")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("prompt", nargs="?", help="text to continue")
    prompt.add_argument("--prompt-file", type=Path, help="file with the text to continue")
    prompt.add_argument("--tokens", help="token ids to continue, such as 1,2,3")
    parser.add_argument("--print-tokens", action="store_true", help="print token ids instead of text")
    parser.add_argument("--max-new-tokens", type=count, help="without it, as long as it goes on")
    parser.add_argument("--max-context", type=count, help="context to declare [prompt and new tokens]")
    parser.add_argument("--chunk", type=count, default=512, help="tokens of the prompt run at a time [512]")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--temperature", type=number, help="draw the tokens; without it, the likeliest one")
    parser.add_argument("--top-p", type=number, help="share of probability to draw from [1]")
    parser.add_argument("--seed", type=int, help="of the draws")
    parser.add_argument("--threads", type=count, default=0, help="processors to use [all]")
    parser.add_argument("--accurate", action="store_true", help="multiply 4-bit matrices with float32")
    arguments = parser.parse_args()
    if arguments.temperature is None and (arguments.top_p, arguments.seed) != (None, None):
        parser.error("--top-p and --seed need --temperature")
    return arguments


def begin(arguments: argparse.Namespace, model: Model, prompt: list[int]) -> Conversation:
    """A conversation with the prompt in it, not run yet, and with room for an answer."""
    context = arguments.max_context
    if context is not None and context > model.max_context:
        raise Refusal(f"--max-context {context}: the model's own is {model.max_context}")
    if context is None and arguments.max_new_tokens is not None:
        context = len(prompt) + arguments.max_new_tokens
    conversation = Conversation(model, context, arguments.chunk)
    if len(prompt) >= conversation.limit:
        raise Refusal(f"the prompt's {len(prompt)} tokens leave no room in a context of {conversation.limit}")
    conversation.tokens.extend(prompt)
    return conversation


def report(conversation: Conversation, made: int, before: float, after: float) -> str:
    """What it took. before, after: seconds up to the first new token, and from there on."""
    model, read = conversation.model, len(conversation.tokens) - made
    parts = [
        f"prompt of {read} tokens in {before:.2f} s ({read / before:.0f}/s)",
        f"{made - 1} after the first new one in {after:.2f} s ({(made - 1) / after:.1f}/s)",
        f"context {conversation.declared} of at most {model.max_context}",
        f"bucket {model.bucket(conversation.declared) + 1} of {len(model.buckets)}",
        f"all run again {conversation.reruns} times",
    ]
    return ", ".join(parts)


def run(arguments: argparse.Namespace, directory: Path) -> None:
    """Generate, show, and say what it took."""
    ids_only = arguments.print_tokens and arguments.tokens is not None
    tokenizer = None if ids_only else read_tokenizer(directory)
    stop = read_end_tokens(directory)
    model = Model(directory, arguments.provider, arguments.threads, arguments.accurate)
    prompt = read_prompt(arguments, tokenizer, model.vocabulary)
    conversation = begin(arguments, model, prompt)
    choose: Choose = greedy
    if arguments.temperature is not None:
        choose = sampler(arguments.temperature, arguments.top_p or 1.0, arguments.seed)
    text = None if arguments.print_tokens else TextStream(tokenizer, prompt)
    started, first, made = time.perf_counter(), 0.0, 0
    for token in generate(conversation, arguments.max_new_tokens, choose, stop):
        first = first or time.perf_counter()
        if text is None:
            print(f"{',' if made else ''}{token}", end="", flush=True)
        elif token not in stop:
            print(text.add(token), end="", flush=True)
        made += 1
    print("" if text is None else text.rest(), flush=True)
    print(report(conversation, made, first - started, time.perf_counter() - first), file=sys.stderr)
    if len(conversation.tokens) == conversation.limit and made != arguments.max_new_tokens:
        print(f"stopped: the context of {conversation.limit} is full", file=sys.stderr)


def main() -> int:
    """The command's exit code: 2 bad input, 4 a missing package, 130 interrupted."""
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        run(parse_arguments(), Path(__file__).resolve().parent)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
