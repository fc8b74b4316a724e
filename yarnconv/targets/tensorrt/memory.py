"""What building takes, estimated before it begins.

Measured with TensorRT-RTX 1.7 (`python -m tests.bench.tensorrt_bench`): the builder's own memory is below
0.6 GB + 1.6 x the engine's weights, and where it converts them to another type another 1 x.
"""

from yarnconv.errors import BadInput
from yarnconv.sizes import readable_size
from yarnconv.targets.memory import available_memory

FIXED_BYTES = 3 * 10**8
PER_WEIGHT, PER_CONVERTED = 1.5, 0.7  # below what was measured: an estimate must not refuse what would do


def needed_memory(weight_bytes: int, *, converts: bool) -> int:
    """Bytes."""
    return FIXED_BYTES + int(weight_bytes * (PER_WEIGHT + (PER_CONVERTED if converts else 0.0)))


def check_memory(weight_bytes: int, *, converts: bool) -> None:
    """Refuse to begin what the machine cannot end. Raises BadInput."""
    needed, available = needed_memory(weight_bytes, converts=converts), available_memory()
    if available is not None and needed > available:
        raise BadInput(
            f"building takes about {readable_size(needed)} of memory, "
            f"{readable_size(available)} are available",
            where=f"{readable_size(weight_bytes)} of weights",
            fix="Build on a larger machine, free some memory, or choose --dtype int4.",
        )
