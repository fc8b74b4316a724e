"""The RoPE picture of an HTML report: numbers for two small SVGs, which need no library to draw."""

import math
from typing import Any

import numpy as np

from yarnconv.console.figures import Curve
from yarnconv.rope.tables import Float64Array

WIDTH, HEIGHT = 460, 180  # of what is drawn in, without its labels
MOST_PAIRS = 256  # more are not seen apart
LEAST_BAR = 0.06  # a pair that is divided by all of the factor is still there


def _chosen(pairs: int) -> list[int]:
    """Indices of the pairs that are drawn."""
    count = min(pairs, MOST_PAIRS)
    return [round(index * (pairs - 1) / max(count - 1, 1)) for index in range(count)]


def _bars(curve: Curve) -> dict[str, Any]:
    """One bar for each pair: how much of its plain frequency it keeps, on a logarithmic axis."""
    kept, regimes = curve.kept, curve.regimes
    lowest, highest = min(float(kept.min()), 0.5), max(float(kept.max()), 1.0)

    def height(share: float) -> float:
        part = math.log(share / lowest) / math.log(highest / lowest)
        return HEIGHT * (LEAST_BAR + (1.0 - LEAST_BAR) * part)

    chosen = _chosen(len(kept))
    step = WIDTH / len(chosen)
    bars = [
        {
            "x": round(place * step, 2),
            "y": round(HEIGHT - height(float(kept[pair])), 2),
            "width": round(step * 0.82, 2),
            "height": round(height(float(kept[pair])), 2),
            "regime": regimes[pair],
            "title": f"pair {pair}: {float(kept[pair]):.4g} of its frequency",
        }
        for place, pair in enumerate(chosen)
    ]
    powers = range(math.floor(-math.log2(lowest) + 1e-9) + 1)
    every = -(-len(powers) // 6)
    ticks = [
        {"y": round(HEIGHT - height(2.0**-power), 2), "text": f"1/{2**power}" if power else "1"}
        for power in powers[::every]
    ]
    return {"bars": bars, "ticks": ticks, "last": len(kept) - 1}


def _lines(curve: Curve, original_context: int) -> dict[str, Any]:
    """Frequencies with and without the scaling, on a logarithmic axis."""
    once = 2.0 * math.pi / original_context
    every = np.concatenate([curve.inv_freq, curve.plain_inv_freq, [once]])
    low, high = math.floor(math.log10(every.min())), math.ceil(math.log10(every.max()))
    chosen = _chosen(len(curve.inv_freq))

    def level(value: float) -> float:
        return round(HEIGHT * float(high - math.log10(value)) / max(high - low, 1), 2)

    def points(values: Float64Array) -> str:
        across = WIDTH / max(len(chosen) - 1, 1)
        return " ".join(
            f"{place * across:.2f},{level(float(values[pair]))}" for place, pair in enumerate(chosen)
        )

    step = max(1, (high - low) // 6)
    ticks = [{"y": level(10.0**power), "power": power} for power in range(low, high + 1, step)]
    return {
        "scaled": points(curve.inv_freq),
        "plain": points(curve.plain_inv_freq),
        "once": level(once),
        "ticks": ticks,
        "last": len(curve.inv_freq) - 1,
    }


def rope_drawing(curve: Curve, original_context: int) -> dict[str, Any]:
    """What the template `report/rope.html` draws of one curve."""
    counts = {name: curve.regimes.count(name) for name in ("extrapolated", "blended", "interpolated")}
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "shares": _bars(curve),
        "frequencies": _lines(curve, original_context),
        "counts": counts,
        "original_context": original_context,
    }
