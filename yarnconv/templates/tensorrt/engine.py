"""Runs a TensorRT engine that yarnconv wrote: one sequence, its keys and values on the GPU.

`generate.py` beside it generates text with this. An engine is native code for certain GPUs and one version of
one runtime (`tensorrt` or `tensorrt_rtx`); yarnconv.json says for which. Needs numpy, cuda-bindings and that
runtime, of which the last two are imported only when an engine is opened.

The cache is two sets of buffers: a step reads keys and values from one and writes them, the new ones behind
them, to the other.
"""

import importlib
import mmap
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from sidecar import MODULES, TYPES, Facts, Profile, Unusable, choose

ALIGNMENT = 256  # bytes, which kernels may expect of an address
ELSEWHERE = 5  # exit code: nothing is wrong with the engine, but it does not run here


class Gpu:
    """CUDA's calls, checked. One stream for everything."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as missing:
            raise Unusable(f"{missing}. Install it: pip install cuda-bindings", 4) from None
        self._cuda = runtime
        self._stream: Any = None
        error, count = runtime.cudaGetDeviceCount()
        if int(error) or not count:
            raise Unusable(self._why_none(), ELSEWHERE)
        (self._stream,) = self._call("cudaStreamCreate")

    def _why_none(self) -> str:
        if not self._cuda.cudaDriverGetVersion()[1]:
            return "this machine has no NVIDIA driver: an engine runs on a GPU only"
        error, _ = self._cuda.cudaGetDeviceCount()
        return f"no GPU can be reached ({self._words(error)}): an engine runs on a GPU only"

    def _words(self, error: Any) -> str:
        return str(self._cuda.cudaGetErrorString(error)[1].decode(errors="replace"))

    def _call(self, name: str, *arguments: Any) -> Sequence[Any]:
        error, *values = getattr(self._cuda, name)(*arguments)
        if int(error):
            raise Unusable(f"CUDA: {self._words(error)} ({name})", 70)
        return list(values)

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    @property
    def capability(self) -> str:
        """Of the GPU, as in "8.9"."""
        (device,) = self._call("cudaGetDevice")
        kinds = self._cuda.cudaDeviceAttr
        wanted = kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor
        return ".".join(str(self._call("cudaDeviceGetAttribute", kind, device)[0]) for kind in wanted)

    def take(self, size: int) -> int:
        """The address of memory."""
        error, pointer = self._cuda.cudaMalloc(size)
        if int(error):
            raise Unusable(
                f"the GPU has no {size / 1e9:.2f} GB left ({self._words(error)}). Ask for a shorter context",
                ELSEWHERE,
            )
        return int(pointer)

    def give_back(self, pointer: int) -> None:
        """Free memory."""
        self._cuda.cudaFree(pointer)

    def write(self, pointer: int, array: Any) -> None:
        """Copy an array to the GPU; it may be changed afterwards."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, self._stream)
        self._call("cudaStreamSynchronize", self._stream)

    def read(self, array: Any, pointer: int) -> None:
        """Wait for the GPU and copy from it into an array."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, self._stream)
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give back the stream."""
        if self._stream is not None:
            self._cuda.cudaStreamDestroy(self._stream)
            self._stream = None


class Buffer:
    """Memory on the GPU that grows; what it held is lost then."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.pointer = self.size = 0

    def hold(self, size: int) -> int:
        """Its address, with room for that many bytes. Never 0: TensorRT wants one for empty tensors too."""
        if size > self.size or not self.pointer:
            self.free()
            self.pointer = self._gpu.take(max(size, ALIGNMENT))
            self.size = size
        return self.pointer

    def free(self) -> None:
        """Give it back."""
        if self.pointer:
            self._gpu.give_back(self.pointer)
        self.pointer = self.size = 0


class _Caches(Buffer):
    """Keys and values of all layers in one piece of memory, each with room for `length` tokens."""

    def __init__(self, gpu: Gpu, facts: Facts) -> None:
        super().__init__(gpu)
        self._count = len(facts.slots)
        self._token_bytes = facts.heads * facts.head_dim * TYPES[facts.cache_type][1]
        self.length = 0

    def size_for(self, length: int) -> int:
        return self._count * self._stride(length)

    def _stride(self, length: int) -> int:
        return -(-length * self._token_bytes // ALIGNMENT) * ALIGNMENT

    def make(self, length: int) -> None:
        """Room for that many tokens. What was in it is lost if it grows."""
        if length > self.length or not self.pointer:
            self.hold(self.size_for(length))
            self.length = length

    def address(self, index: int) -> int:
        return self.pointer + index * self._stride(self.length)


def import_runtime(name: str, version: str | None = None) -> Any:
    """The TensorRT of that name. version: what an engine needs of it."""
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as missing:  # its libraries are loaded then, too
        package = f"{name}=={version}" if version else name
        raise Unusable(f"{missing}. Install it: pip install {package} cuda-bindings", 4) from None


def _new_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """The last errors that TensorRT reported; it would print them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors = [*self.errors[-2:], " ".join(message.split())[:400]]

    return Log()


class Engine:
    """An engine on the GPU, and the cache of one sequence. A context manager.

    context: the longest that will be asked for. Of an engine that streams its weights the cache for it is
    taken at once, and the weights that stay on the GPU are as many as what is left can hold.
    """

    def __init__(self, facts: Facts, context: int) -> None:
        self._facts = facts
        self._trt = import_runtime(facts.runtime, facts.version)
        self._gpu = Gpu()
        self._log = _new_log(self._trt)
        self._buffers = {
            name: Buffer(self._gpu)
            for name in ("input_ids", "attention_mask", "position_ids", "rope_context", "logits")
        }
        self._caches = [_Caches(self._gpu, facts), _Caches(self._gpu, facts)]
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._profile = 0  # the one that a new context has
        self._room = self._ones = 0
        self._declared = np.zeros(1, np.int64)
        self._takes_context = False
        self._profiles: list[Profile] = []
        try:
            self._load()
            self._check()
            self._share_memory(context)
            engine: Any = self._engine
            self._context = engine.create_execution_context()
            if self._context is None:
                raise self._unusable("no execution context is made of the engine", ELSEWHERE)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._context = None  # in this order: each holds what the next one owns
        self._engine = None
        self._runtime = None
        for buffer in (*self._buffers.values(), *self._caches):
            buffer.free()
        self._gpu.close()

    def _unusable(self, what: str, code: int = 70) -> Unusable:
        said = " | ".join(self._log.errors)
        return Unusable(f"{self._facts.engine}: {what}" + (f": {said}" if said else ""), code)

    def _load(self) -> None:
        path = self._facts.engine
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            try:
                self._runtime = self._trt.Runtime(self._log)
                self._engine = self._runtime.deserialize_cuda_engine(plan)
            except (RuntimeError, TypeError) as error:  # a null pointer is a TypeError
                self._log.errors.append(" ".join(str(error).split())[:400])
            if self._engine is None:
                raise self._not_loaded()

    def _not_loaded(self) -> Unusable:
        facts, version, here = self._facts, self._trt.__version__, self._gpu.capability
        belongs = here in facts.capabilities and version == facts.version
        return self._unusable(
            f"{facts.runtime} {version} does not load it on this GPU of compute capability {here}. It was "
            f"built by {facts.version} for {', '.join(facts.capabilities) or 'none'} and runs on no other"
            + ("" if belongs else "; build it again for this one with yarnconv trt"),
            2 if belongs else ELSEWHERE,
        )

    def _check(self) -> None:
        """Whether it is the engine that the sidecar describes: buffers are sized by that."""
        facts, engine, types = self._facts, self._engine, self._trt.DataType
        tokens = (types.INT64, (1, None))
        cache = (getattr(types, TYPES[facts.cache_type][0]), (1, facts.heads, None, facts.head_dim))
        wanted: dict[str, tuple[Any, tuple[int | None, ...]]] = {
            "logits": (types.FLOAT, (1, None, facts.vocabulary)),
            **dict.fromkeys(("input_ids", "attention_mask", "position_ids"), tokens),
            **{f"{side}.{slot}": cache for slot in facts.slots for side in ("past_key_values", "present")},
        }
        found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        self._takes_context = "rope_context" in found
        if self._takes_context:
            rank = len(engine.get_tensor_shape("rope_context"))
            wanted["rope_context"] = (types.INT64, (1,) * min(rank, 1))
        if found != set(wanted) or self._takes_context < (len(facts.buckets) > 1):
            raise self._unusable("its inputs and outputs are not those of its sidecar", 2)
        for name, (kind, needed) in wanted.items():
            shape = tuple(engine.get_tensor_shape(name))
            agrees = len(shape) == len(needed) and all(
                size == -1 or need is None or size == need for size, need in zip(shape, needed, strict=True)
            )
            if engine.get_tensor_dtype(name) != kind or not agrees:
                raise self._unusable(f"{name} is {shape}, not as its sidecar has it", 2)
        self._profiles = [self._read_profile(index) for index in range(engine.num_optimization_profiles)]

    def _read_profile(self, index: int) -> Profile:
        shapes = self._engine.get_tensor_profile_shape
        new = [shape[1] for shape in shapes("input_ids", index)]
        past = [shape[2] for shape in shapes("past_key_values.0.key", index)]
        total = shapes("attention_mask", index)[2][1]
        return Profile((new[0], new[1], new[2]), (past[0], past[1], past[2]), total)

    def _share_memory(self, context: int) -> None:
        engine = self._engine
        if getattr(engine, "streamable_weights_size", 0) > 0:
            for caches in self._caches:
                caches.make(min(context, self._facts.max_context))
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()

    def reserve(self, context: int) -> None:
        """Make the next buffers that are needed large enough for a context. What they hold stays."""
        self._room = context

    def run(
        self, tokens: Any, positions: Any, past: int, context: int, every: bool = False
    ) -> tuple[Any, int]:
        """Run tokens behind the `past` ones that were run, or as many of them as a profile takes.

        tokens, positions: int64[n]. context: what the request declares. Returns the logits, float32[rows,
        vocabulary], and how many tokens were run: a row for each where `every` is set and the engine makes
        them, else for the last one.
        """
        chosen = choose(self._profiles, past, len(tokens))
        if chosen is None:
            raise Unusable(f"{self._facts.engine}: no profile takes a token behind {past} others")
        profile, count = chosen
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._gpu.stream):
                raise self._unusable(f"it does not switch to its profile {profile}")
            self._profile = profile
        self._place_caches(past, past + count)  # first, as it is what memory may be too small for
        self._place_tokens(tokens[:count], positions[:count], past + count, context)
        shape = tuple(self._context.get_tensor_shape("logits"))
        if shape not in ((1, 1, self._facts.vocabulary), (1, count, self._facts.vocabulary)):
            raise self._unusable(f"its logits would be {shape}")
        row = 4 * self._facts.vocabulary
        logits = self._buffers["logits"].hold(row * shape[1])
        self._place("logits", None, logits)
        if not self._context.execute_async_v3(self._gpu.stream):
            raise self._unusable("it does not run")
        self._caches.reverse()
        rows = shape[1] if every else 1
        found = np.empty((rows, self._facts.vocabulary), np.float32)
        self._gpu.read(found, logits + row * (shape[1] - rows))
        return found, count

    def _place(self, name: str, shape: tuple[int, ...] | None, address: int) -> None:
        """Where a tensor lies, and of an input how large it is."""
        context = self._context
        if (shape is not None and not context.set_input_shape(name, shape)) or not context.set_tensor_address(
            name, address
        ):
            raise self._unusable(f"it does not take {name} of shape {shape}")

    def _place_tokens(self, tokens: Any, positions: Any, total: int, context: int) -> None:
        for name, values in (("input_ids", tokens), ("position_ids", positions)):
            array = np.ascontiguousarray(values, np.int64)
            address = self._buffers[name].hold(array.nbytes)
            self._gpu.write(address, array)
            self._place(name, (1, len(array)), address)
        mask = self._buffers["attention_mask"]
        if total > self._ones:
            self._ones = max(total, self._room)
            self._gpu.write(mask.hold(8 * self._ones), np.ones(self._ones, np.int64))
        self._place("attention_mask", (1, total), mask.pointer)
        if self._takes_context:
            self._declared[0] = context
            if self._engine.get_tensor_location("rope_context") == self._trt.TensorLocation.HOST:
                self._place("rope_context", None, self._declared.ctypes.data)
            else:
                address = self._buffers["rope_context"].hold(self._declared.nbytes)
                self._gpu.write(address, self._declared)
                self._place("rope_context", None, address)

    def _place_caches(self, past: int, total: int) -> None:
        source, target = self._caches
        for caches in (source, target) if not past else (target,):
            caches.make(max(total, self._room))
        shape = (1, self._facts.heads, past, self._facts.head_dim)
        for index, slot in enumerate(self._facts.slots):
            self._place(f"past_key_values.{slot}", shape, source.address(index))
            self._place(f"present.{slot}", None, target.address(index))
