"""What an extension costs at short lengths and gains at long ones.

    python -m tests.bench.accuracy_by_length [--prompts 512]

Keys recalled by fixtures/passkey-llama (trained at 128 positions) through ONNX Runtime, and the loss of their
letters, which shows more. Three minutes on one core.
"""

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console

from fixtures.onnx_recall import measure, table


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=512, help="of each length")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), count=arguments.prompts)
    console = Console(width=120, highlight=False)
    title = f"{{}}, {arguments.prompts} prompts a cell"
    console.print(
        table(
            found,
            title.format("keys recalled"),
            lambda own: f"{100 * own.accuracy:.1f} %",
            lambda own, best: own.accuracy >= best.accuracy - 0.005,
        )
    )
    console.print(
        table(
            found,
            title.format("loss of the keys' letters in nats"),
            lambda own: f"{own.loss:.3f}",
            lambda own, best: own.loss <= 1.02 * best.loss,
        )
    )
    for (first, before), (second, after) in pairwise(found.items()):
        console.print(f"loss of {first} less that of {second}, and its standard error over the prompts:")
        for length in before:
            difference = before[length].losses - after[length].losses
            error = difference.std(ddof=1) / np.sqrt(len(difference))
            console.print(f"  {length:4} {difference.mean():+.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
