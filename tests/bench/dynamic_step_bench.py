"""What choosing the factor in the graph costs a decode step: dynamic-yarn beside static YaRN.

    python -m tests.bench.dynamic_step_bench [--steps 100] [--sessions 5] [--layers 8] [--directory DIR]

Factor 16 on an original context of 8192: the static graph has a table of 131072 rows, the dynamic one five of
together 253952. One token at a context of 512, the graphs in turn, each time in the other order, medians of
the differences of neighbours. Two sessions of one and the same large graph already differ, by where their
weights came to lie; hence several pairs of sessions, and a second session of the static graph to tell how far
to trust them. What the choice costs does not depend on the model, so a tiny one, a step of which takes little
else, shows it sharply: that is given as a share of the large one's step too.
"""

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.big_model import SHAPE_0_7B, make_big_model
from tests.bench.onnx_bench import YARNCONV
from tests.bench.onnx_decode_bench import Decoder, alternate

CONTEXT = 512
TARGET_PERCENT = 1.0
LARGE = {**SHAPE_0_7B, "max_position_embeddings": 8192}
TINY = {
    **LARGE,
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def _convert(model: Path, method: str) -> Path:
    out = model.with_name(f"{model.name}-{method}")
    if not out.exists():
        command = [*YARNCONV, str(model), "--factor", "16", "--method", method, "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True)
    return out


def _differences(one: Path, other: Path, sessions: int, steps: int) -> tuple[float, list[float]]:
    """(median seconds of the other's step, the median by which one takes longer in each pair of sessions)."""
    medians, more = [], []
    for number in range(sessions):
        turn = 1 if number % 2 else -1  # each is loaded first in turn
        decoders = [Decoder(path, CONTEXT, shared=True) for path in (one, other)[::turn]][::turn]
        spent, least = alternate(*decoders, steps)
        medians.append(statistics.median(least))
        more.append(statistics.median(a - b for a, b in zip(spent, least, strict=True)))
    return statistics.median(medians), more


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    arguments = parser.parse_args()
    large = make_big_model(arguments.directory / f"llama-8k-{arguments.layers}", arguments.layers, LARGE)
    tiny = make_big_model(arguments.directory / "llama-8k-tiny", 1, TINY)
    title = f"Decode step, {arguments.layers} layers or tiny, {arguments.sessions} pairs of sessions"
    table = Table(title=title, caption=f"Target: dynamic-yarn takes at most {TARGET_PERCENT:g} % more.")
    for heading in ("model", "graph", "static ms", "more, in us", "min to max", "% of the large step"):
        table.add_column(heading, justify="left" if heading in ("model", "graph") else "right")
    large_step = float("inf")
    for model, steps in ((large, arguments.steps), (tiny, 20 * arguments.steps)):
        static = _convert(model, "yarn")
        for name, graph in (("dynamic-yarn", _convert(model, "dynamic-yarn")), ("static again", static)):
            step, more = _differences(graph, static, arguments.sessions, steps)
            large_step = min(large_step, step) if model == large else large_step
            found = statistics.median(more)
            table.add_row(
                *("large" if model == large else "tiny", name, f"{1e3 * step:.3f}", f"{1e6 * found:+.1f}"),
                f"{1e6 * min(more):+.1f} to {1e6 * max(more):+.1f}",
                f"{100 * found / large_step:+.3f}",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
