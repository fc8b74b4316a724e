"""Parses a graph with TensorRT and builds an engine of it, for `builder`: one request a line on stdin, one
answer a line on stdout. All that differs between tensorrt 10, tensorrt 11 and tensorrt_rtx stands here.

A process of its own: a graph may crash the builder, Ctrl-C ends a build at once, and memory goes with it.
"""

import importlib
import mmap
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[3]))  # last: nothing of ours may hide what is theirs
from yarnconv.targets.tensorrt.network_reader import NetworkReader
from yarnconv.worker_side import Answer, NotHere, Refused, serve

SEVERITIES = ("internal error", "error", "warning", "info", "verbose")
ERROR, WARNING, INFO = 1, 2, 3
# What TensorRT warns of for every graph with 64-bit inputs, which ours has on purpose.
EXPECTED = re.compile(r"Make sure input \S+ has Int64 binding")
POLL_SECONDS = 0.1


class Memory(threading.Thread):
    """Watches what the process takes, and lets go of mapped pages, which are read again when needed."""

    def __init__(self, maps: list[mmap.mmap]) -> None:
        super().__init__(daemon=True)
        self._maps = maps
        self.peak_anonymous = self.peak_resident = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Until it is stopped."""
        while not self._over.wait(POLL_SECONDS):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self.look()

    def look(self) -> None:
        """Once."""
        lines = Path("/proc/self/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        self.peak_anonymous = max(self.peak_anonymous, 1024 * int(found["RssAnon"].split()[0]))
        self.peak_resident = max(self.peak_resident, 1024 * int(found["VmRSS"].split()[0]))

    def stop(self) -> None:
        """And wait for it."""
        self._over.set()
        self.join()


class Builder:
    """One graph: parsed, looked at, built."""

    def __init__(self, request: dict[str, Any], answer: Answer) -> None:
        self._answer = answer
        self._trt = trt = importlib.import_module(request["module"])
        self._errors: list[str] = []
        self._logger = self._make_logger(request["level"])
        try:
            self._builder = trt.Builder(self._logger)
        except TypeError:  # its factory gave nothing
            raise Refused(f"it does not start here: {self._said()}") from None
        self._network = self._builder.create_network(self._flags())
        self._parser = trt.OnnxParser(self._network, self._logger)
        self._maps: dict[str, mmap.mmap] = {}
        self._kept: list[Any] = []  # what the parser points into
        self._parse(Path(request["path"]), request["initialisers"])
        self.reader = NetworkReader(trt, self._network)

    def _make_logger(self, level: int) -> Any:
        answer, errors = self._answer, self._errors

        class Logger(self._trt.ILogger):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                number = int(severity)
                if number <= ERROR:
                    errors.append(message)
                if EXPECTED.search(message):
                    number = INFO
                if number <= level:
                    answer({"event": {"level": SEVERITIES[number], "message": message}})

        return Logger()

    def _said(self) -> str:
        """TensorRT's own last words."""
        text = " ".join(" ".join(self._errors[-3:]).split())
        return text[:1000] or "it does not say why"

    def _flags(self) -> int:
        """Every type stands in the graph. In TensorRT 10 that is asked for; later it is always so."""
        strongly_typed = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if strongly_typed is None else 1 << int(strongly_typed)

    # parsing

    def _parse(self, path: Path, initialisers: list[dict[str, Any]]) -> None:
        if not hasattr(self._trt, "IRotaryEmbeddingLayer"):  # nor a parser that takes weights from memory
            raise Refused("its layers cannot be read back. Install TensorRT 10.15 or later")
        if not self._parser.load_model_proto(path.read_bytes()):
            raise Refused(self._parser_errors())
        for one in initialisers:
            data = self._mapped(one["path"])[one["offset"] : one["offset"] + one["nbytes"]]
            self._kept.append(data)
            if not self._parser.load_initializer(one["name"], data.ctypes.data, data.nbytes):
                raise Refused(f"it does not take the tensor {one['name']}. {self._parser_errors()}")
        if not self._parser.parse_model_proto():
            raise Refused(self._parser_errors())

    def _mapped(self, path: str) -> Any:
        if path not in self._maps:
            with Path(path).open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._maps[path], np.uint8)

    def _parser_errors(self) -> str:
        found = []
        for index in range(self._parser.num_errors):
            error = self._parser.get_error(index)
            found.append(f"{error.node_operator()} {error.node_name()}: {error.desc()}")
        return " ".join("; ".join(found).split())[:1000] or self._said()

    # building

    def _config(self, request: dict[str, Any]) -> Any:
        trt, config = self._trt, self._builder.create_builder_config()
        if capabilities := request["compute_capabilities"]:
            config.num_compute_capabilities = len(capabilities)
            for index, name in enumerate(capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        if request["optimization_level"] is not None:
            config.builder_optimization_level = request["optimization_level"]
        if request["workspace"] is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is what was asked for, where it was
        if request["weight_streaming"]:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        if hasattr(trt.BuilderFlag, "STRICT_NANS"):
            # a position beyond the tables gives NaN: no optimisation may make a number of it
            config.set_flag(trt.BuilderFlag.STRICT_NANS)
        for wanted in request["profiles"]:
            profile = self._builder.create_optimization_profile()
            for name, (least, usual, most) in wanted["shapes"].items():
                profile.set_shape(name, least, usual, most)
            if config.add_optimization_profile(profile) < 0:
                raise Refused(f"it does not take the profile {wanted['name']}: {self._said()}")
        config.progress_monitor = self._monitor()
        return config

    def _monitor(self) -> Any:
        answer = self._answer

        class Monitor(self._trt.IProgressMonitor):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                answer({"event": {"phase": phase}})

            def step_complete(self, phase: str, step: int) -> bool:
                return True  # whoever wants to stop ends this process

            def phase_finish(self, phase: str) -> None:
                pass

        return Monitor()

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write the engine."""
        self.reader.prepare()
        config = self._config(request)
        memory = Memory(list(self._maps.values()))
        memory.start()
        with Path(request["engine"]).open("wb", buffering=0) as file:
            built = self._write(config, file)
        memory.stop()
        if not built:
            raise Refused(self._said())
        return {"peak_anonymous": memory.peak_anonymous, "peak_resident": memory.peak_resident}

    @staticmethod
    def _put(file: Any, data: memoryview) -> None:
        """Write all: one call takes at most 2 GiB."""
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:  # such as a full disk
            raise NotHere(f"the engine cannot be written: {error.strerror}") from None

    def _write(self, config: Any, file: Any) -> bool:
        if not hasattr(self._builder, "build_serialized_network_to_stream"):
            made = self._builder.build_serialized_network(self._network, config)
            if made is not None:
                self._put(file, memoryview(made))
            return made is not None
        failed: list[NotHere] = []
        put = self._put

        class Writer(self._trt.IStreamWriter):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()

            def write(self, data: bytes) -> int:
                try:
                    put(file, memoryview(data))
                except NotHere as error:
                    failed.append(error)
                    return 0
                return len(data)

        writer = Writer()
        built = self._builder.build_serialized_network_to_stream(self._network, config, writer)
        if failed:
            raise failed[0]
        return bool(built)


def offers(module: str) -> dict[str, Any]:
    """What a module has."""
    try:
        trt = importlib.import_module(module)
    except ImportError as error:
        raise Refused(f"it cannot be imported: {error}") from None
    known = getattr(trt, "ComputeCapability", None)
    names = [name for name in dir(known) if name.startswith("SM")] if known is not None else []
    return {"version": trt.__version__, "compute_capabilities": names}


def main() -> None:
    """Answer requests until stdin ends."""
    builders: list[Builder] = []  # the one that parsed last, for what comes next

    def handle(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
        if request["do"] == "offer":
            return offers(request["module"])
        if request["do"] == "parse":
            builders[:] = [Builder(request, answer)]
            return builders[0].reader.read(Path(request["tables"]))
        return builders[0].build(request)

    serve(handle)


if __name__ == "__main__":
    main()
