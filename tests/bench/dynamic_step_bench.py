"""What choosing the factor in the graph costs a decode step: dynamic-yarn beside static YaRN.

    python -m tests.bench.dynamic_step_bench [--steps 400] [--layers 4] [--directory DIR]

Factor 16 on an original context of 8192: the static graph has a table of 131072 rows, the dynamic one five of
together 253952. One token at a context of 512, the graphs in turn, each time in the other order: what is
sought is smaller than the noise of a step, hence many of them and the median of the ratios of neighbours. A
second session of the static graph tells how far that median can be trusted.
"""

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.bench.big_model import SHAPE_0_7B, make_big_model
from tests.bench.onnx_bench import YARNCONV
from tests.bench.onnx_decode_bench import Decoder, alternate

CONTEXT = 512
TARGET_PERCENT = 1.0


def _convert(model: Path, method: str) -> Path:
    out = model.with_name(f"{model.name}-{method}")
    if not out.exists():
        command = [*YARNCONV, str(model), "--factor", "16", "--method", method, "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True)
    return out


def _median_and_interval(ratios) -> tuple[float, float, float]:
    """The median, and between what 95 % of the medians of samples with replacement lie."""
    samples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(samples, axis=1), [0.025, 0.975])
    return statistics.median(ratios), float(low), float(high)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    arguments = parser.parse_args()
    shape = {**SHAPE_0_7B, "max_position_embeddings": 8192}
    model = make_big_model(arguments.directory / f"llama-8k-{arguments.layers}", arguments.layers, shape)
    table = Table(title=f"Decode step, {arguments.layers} layers, {arguments.steps} steps of each")
    for heading in ("graph", "median ms", "static ms", "more, in %", "95 % interval", "target: at most"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    static = Decoder(_convert(model, "yarn"), CONTEXT, shared=True)
    for name, method in (("dynamic-yarn", "dynamic-yarn"), ("static again", "yarn")):
        other = Decoder(_convert(model, method), CONTEXT, shared=True)
        spent, reference = alternate(other, static, arguments.steps)
        found = _median_and_interval([a / b for a, b in zip(spent, reference, strict=True)])
        more, low, high = (100 * (ratio - 1) for ratio in found)
        table.add_row(
            name,
            *(f"{1000 * statistics.median(seconds):.2f}" for seconds in (spent, reference)),
            *(f"{more:+.2f}", f"{low:+.2f} to {high:+.2f}"),
            f"{TARGET_PERCENT:+g}" if method == "dynamic-yarn" else "",
        )
        del other
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
