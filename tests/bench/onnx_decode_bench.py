"""Decode speed on the CPU: our graph in ONNX Runtime beside that of onnxruntime-genai's builder.

    python -m tests.bench.onnx_decode_bench [--steps 40] [--contexts 512 8192 32768] [--directory DIR]

The same weights (a Llama of 0.7 B parameters), the same session options, two threads, one token at a fixed
context again and again, the two graphs in turn; medians, and ratios of neighbouring steps. In ONNX Runtime
every cache is bound once: ours past and present to one buffer, the builder's to two, as where they are not
shared, and for information to one as well. In onnxruntime-genai, for information too, each runs with the
configuration it comes with. The long contexts run on fewer layers, among which the head weighs more than in a
whole model.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from tests.bench.big_model import SHAPE_0_7B, make_big_model
from tests.bench.measuring import median_ratio
from tests.bench.onnx_bench import YARNCONV, builder

THREADS = 2
WARM_UP = 4
# A pool that spins after its step would take a processor from the other graph's step.
STOP_SPINNING = "session.force_spinning_stop"
SHORT, LONG = 512, (8192, 32768)
TARGETS = {SHORT: 1.0} | dict.fromkeys(LONG, 1.3)


class Decoder:
    """A session that decodes one token at a fixed context; shared: past and present are one buffer."""

    def __init__(self, directory: Path, context: int, *, shared: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry(STOP_SPINNING, "1")
        self._session = onnxruntime.InferenceSession(
            directory / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        self._bound: list[onnxruntime.OrtValue] = []  # they lie in numpy's memory, which has to stay
        generator = np.random.default_rng(0)
        described = json.loads((directory / "genai_config.json").read_text())["model"]["decoder"]
        heads, head_dim = described["num_key_value_heads"], described["head_size"]
        tokens = {
            "input_ids": np.ones((1, 1), np.int64),
            "attention_mask": np.ones((1, context), np.int64),
            "position_ids": np.full((1, 1), context - 1, np.int64),
        }
        for slot in self._session.get_inputs():
            if slot.name in tokens:
                self._bind_input(slot.name, tokens[slot.name])
                continue
            past = context if shared else context - 1
            filled = generator.standard_normal((1, heads, past, head_dim), dtype=np.float32)
            buffer = self._bind_input(slot.name, filled)
            present = buffer if shared else self._value(np.zeros((1, heads, context, head_dim), np.float32))
            name = slot.name.replace("past_key_values", "present")
            self._binding.bind_ortvalue_output(name, present)
        vocabulary = self._session.get_outputs()[0].shape[2]
        logits = self._value(np.zeros((1, 1, vocabulary), np.float32))
        self._binding.bind_ortvalue_output("logits", logits)

    def _value(self, array):
        self._bound.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        return self._bound[-1]

    def _bind_input(self, name: str, array):
        value = self._value(array)
        self._binding.bind_ortvalue_input(name, value)
        return value

    def step(self) -> None:
        """One token."""
        self._session.run_with_iobinding(self._binding)


class GenaiDecoder:
    """onnxruntime-genai itself, from a prompt of `context` tokens on."""

    def __init__(self, directory: Path, context: int, steps: int) -> None:
        import onnxruntime_genai

        config = onnxruntime_genai.Config(str(directory))
        options = {"intra_op_num_threads": THREADS, STOP_SPINNING: "1"}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        # the end-of-text token may come up at any time among random weights
        parameters.set_search_options(max_length=context + steps, min_length=context + steps, do_sample=False)
        self._generator = onnxruntime_genai.Generator(self._model, parameters)
        self._generator.append_tokens([[1] * context])

    def step(self) -> None:
        """One token."""
        self._generator.generate_next_token()


def alternate(first, second, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each one's steps, taken in turn, each time in the other order, without the first few."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(-WARM_UP, steps):
        for index in (0, 1) if step % 2 else (1, 0):
            begin = time.perf_counter()
            (first, second)[index].step()
            if step >= 0:
                seconds[index].append(time.perf_counter() - begin)
    return seconds


def convert(model: Path, dtype: str) -> tuple[Path, Path]:
    """(ours, the builder's) of a checkpoint, made once."""
    made = []
    for kind in ("ours", "builder"):
        out = model.with_name(f"{model.name}-{kind}-{dtype}")
        if not (out / "genai_config.json").exists():
            ours = [*YARNCONV, str(model), "--factor", "4", "--dtype", dtype, "-o", str(out), "--force"]
            command = ours if kind == "ours" else builder(model, out, dtype)
            subprocess.run(command, check=True, capture_output=True)
        made.append(out)
    return made[0], made[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--long-layers", type=int, default=4, help="of 8192 and more")
    parser.add_argument("--contexts", type=int, nargs="+", choices=[SHORT, *LONG], default=[SHORT, *LONG])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "int4"])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    table = Table(title=f"Decode on the CPU, {THREADS} threads, {arguments.steps} steps of each")
    # the fastest steps are those that nothing else on the machine disturbed
    speeds = ("ours tok/s", "theirs tok/s", "ours / theirs", "of the fastest", "target")
    headings = ("layers", "dtype", "context", "against", *speeds)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "against" else "right")

    def compare(layers, dtype, context, against, ours, theirs, steps=arguments.steps):
        mine, others = alternate(ours, theirs, steps)
        table.add_row(
            *(str(layers), dtype, str(context), against),
            *(f"{1 / statistics.median(seconds):.2f}" for seconds in (mine, others)),
            f"{median_ratio(others, mine):.2f}",
            f"{min(others) / min(mine):.2f}",
            f"{TARGETS[context]:g}" if against == "builder" else "",
        )

    wanted = set(arguments.contexts)
    for layers, some in ((arguments.layers, {SHORT}), (arguments.long_layers, set(LONG))):
        contexts = sorted(some & wanted)
        if not contexts:
            continue
        model = make_big_model(arguments.directory / f"llama-0.7b-{layers}", layers, SHAPE_0_7B)
        for dtype in arguments.dtypes:
            ours, theirs = convert(model, dtype)
            for context in contexts:
                mine = Decoder(ours, context, shared=True)
                for against, shared in (("builder", False), ("builder, one buffer", True)):
                    compare(layers, dtype, context, against, mine, Decoder(theirs, context, shared=shared))
                del mine
            if SHORT in contexts:
                steps = arguments.steps
                pair = [GenaiDecoder(directory, SHORT, steps + WARM_UP + 1) for directory in (ours, theirs)]
                compare(layers, dtype, SHORT, "builder, both in genai", *pair)
                del pair
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
