"""Types that llama.cpp's own quantiser writes: k-quants, iq types and the older ones.

A conversion to float comes first, hidden beside the destination and gone on every way out; what will come of
it is known before, from a file of the same header with a hole for its data.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from yarnconv.artifact import check_free_space, termination_as_interrupt, undisturbed
from yarnconv.errors import BadInput, RuntimeCrashed, one_of
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress
from yarnconv.sizes import readable_size
from yarnconv.targets.beside import FileBeside
from yarnconv.targets.gguf.file_format import align
from yarnconv.targets.gguf.imatrix import LOOKED_UP, SHOWN_DATASET, Imatrix, match_imatrix, read_imatrix
from yarnconv.targets.gguf.output import published
from yarnconv.targets.gguf.reader import open_gguf
from yarnconv.targets.gguf.target import OWN_FILE, GgufJob, GgufOptions, OutType, checkpoint_files
from yarnconv.targets.gguf.writer import OutputFile, write_file
from yarnconv.targets.memory import available_memory
from yarnconv.worker import Listen, RuntimeRefused, Worker

WORKER = Path(__file__).with_name("quantiser_worker.py")
# By llama.cpp's names of file types, in the order of their size.
QUANTISED_TYPES = (
    *("iq1_s", "iq1_m", "tq1_0", "tq2_0", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "q2_k_s", "q2_k"),
    *("iq3_xxs", "iq3_xs", "iq3_s", "iq3_m", "q3_k_s", "q3_k_m", "q3_k_l"),
    *("iq4_xs", "iq4_nl", "q4_0", "q4_1", "q4_k_s", "q4_k_m"),
    *("q5_0", "q5_1", "q5_k_s", "q5_k_m", "q6_k"),
)
# That llama.cpp does not write without an importance matrix (`tensor_requires_imatrix` by each one's type).
NEED_IMATRIX = frozenset(
    {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"}
)
LAST = "output.weight"  # takes another type, as the embeddings do
BUFFER_BYTES = 2**27  # of rows that it holds at once, as they are, in float32 and quantised
# Of the process beside its buffers and twice the importance matrix: below what was measured
# (`python -m tests.bench.kquant_bench`), for an estimate must not refuse what would do.
FIXED_BYTES = 10**8
ELSEWHERE = "Free some space, or write elsewhere with -o."


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """What is asked of the quantiser. type: one of QUANTISED_TYPES."""

    type: str
    imatrix: Imatrix | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What will come of a quantisation. nbytes: of the file, at most. fallbacks: (tensor, the type that it
    should have had, the one that it gets) where rows do not divide into blocks.
    """

    nbytes: int
    fallbacks: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedGguf:
    """What was written."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def choose_type(text: str, imatrix: Path | None, split_max_size: int | None) -> Quantisation | None:
    """What the options ask of the quantiser; None where the type is one that is written without it.

    Raises BadInput for a type that is not known, or does not go with the other options, or an importance
    matrix that cannot be read.
    """
    one_of(text, (*get_args(OutType), *QUANTISED_TYPES), "--outtype")
    if text not in QUANTISED_TYPES:
        if imatrix is not None:
            what = f"a file in {text} is not made with an importance matrix"
            raise BadInput(what, where="--imatrix", fix="Leave it out, or choose a type such as q4_k_m.")
        return None
    if split_max_size is not None:
        raise BadInput(
            f"llama.cpp's quantiser writes one file in {text}",
            where="--split-max-size",
            fix="Leave it out, and split the result with llama.cpp's llama-gguf-split.",
        )
    if imatrix is None and text in NEED_IMATRIX:
        raise BadInput(
            f"{text} is too coarse without an importance matrix: llama.cpp does not write it",
            where="--outtype",
            fix="Give --imatrix FILE, made with llama.cpp's llama-imatrix, or choose a larger type.",
        )
    return Quantisation(type=text, imatrix=None if imatrix is None else read_imatrix(imatrix))


def _overrides(imatrix: Imatrix) -> dict[str, str | int]:
    """The keys that llama.cpp's own tool records of an importance matrix; of its path the name only."""
    keys: dict[str, str | int] = {
        "quantize.imatrix.file": imatrix.path.name[:SHOWN_DATASET],
        "quantize.imatrix.entries_count": len(imatrix.values),
    }
    if imatrix.dataset:
        keys["quantize.imatrix.dataset"] = imatrix.dataset[:SHOWN_DATASET]
    if 0 < imatrix.chunks < 2**31:
        keys["quantize.imatrix.chunks_count"] = imatrix.chunks
    return keys


class Quantiser(Worker):
    """Quantises files of one model."""

    crashed_while = "it quantised the model"

    def __init__(self, quantisation: Quantisation, threads: int) -> None:
        # its last words, not a debugger's
        super().__init__("llama.cpp", WORKER, {"GGML_NO_BACKTRACE": "1"})
        self._quantisation, self._threads = quantisation, threads

    def _handed_imatrix(self) -> dict[str, Any] | None:
        imatrix = self._quantisation.imatrix
        if imatrix is None:
            return None
        path = self.scratch / "imatrix.npy"
        if not path.exists():
            np.save(path, np.concatenate(list(imatrix.values.values())))
        return {
            "values": str(path),
            "entries": [[name, len(values)] for name, values in imatrix.values.items()],
        }

    def _ask(self, source: Path, destination: Path, *, forecast: bool, listen: Listen) -> dict[str, Any]:
        imatrix = self._quantisation.imatrix
        request = {
            "path": str(source),
            "out": str(destination),
            "type": self._quantisation.type,
            "threads": self._threads,
            "buffer": BUFFER_BYTES,
            "imatrix": self._handed_imatrix(),
            "overrides": {} if imatrix is None else _overrides(imatrix),
            "forecast": forecast,
        }
        return self.ask(request, listen=listen)

    def forecast(self, file: OutputFile) -> Forecast:
        """What would come of a file that is not written yet."""
        hollow = self.scratch / "hollow.gguf"
        with hollow.open("wb") as written:
            written.write(file.header)
            written.truncate(file.size)
        answer = self._ask(hollow, self.scratch / "none", forecast=True, listen=lambda event: None)
        hollow.unlink()
        most = align(len(file.header) + 2**14) + sum(align(1) for _ in file.tensors)
        return Forecast(
            nbytes=most + int(answer["bytes"]),
            fallbacks=tuple((name, wanted, used) for name, wanted, used in answer["fallbacks"]),
        )

    def quantise(self, source: Path, destination: Path, *, listen: Listen) -> None:
        """Write the file. listen: hears of each tensor, by its name, when it is begun."""
        self._ask(source, destination, forecast=False, listen=listen)


def _matched(quantisation: Quantisation, file: OutputFile) -> tuple[Quantisation, list[str]]:
    """The quantisation with what of its importance matrix the model takes, and notes."""
    if quantisation.imatrix is None:
        return quantisation, []
    widths = {tensor.name: tensor.shape[-1] for tensor, _ in file.tensors if len(tensor.shape) > 1}
    needed = widths.keys() - {LOOKED_UP, LAST} if quantisation.type in NEED_IMATRIX else frozenset()
    imatrix, note = match_imatrix(quantisation.imatrix, widths, needed)
    return Quantisation(type=quantisation.type, imatrix=imatrix), [] if note is None else [note]


def _check_memory(quantisation: Quantisation) -> None:
    given = 0 if quantisation.imatrix is None else quantisation.imatrix.nbytes
    needed, available = FIXED_BYTES + BUFFER_BYTES + 2 * given, available_memory()
    if available is not None and needed > available:
        what = f"quantising takes {readable_size(needed)} of memory, {readable_size(available)} are available"
        raise BadInput(what, where="--outtype", fix="Free some memory.")


def _fallback_notes(forecast: Forecast) -> list[str]:
    by_types = Counter((wanted, used) for _, wanted, used in forecast.fallbacks)
    first = {(wanted, used): name for name, wanted, used in reversed(forecast.fallbacks)}
    return [
        f"{count} tensors are {used} instead of {wanted}: their rows do not divide into its blocks "
        f"({first[wanted, used]}, ...)."
        for (wanted, used), count in by_types.items()
    ]


def _types_note(path: Path) -> str:
    with open_gguf(path) as file:
        counts = Counter(t.tensor_type.name.lower() for t in file.tensors.values() if len(t.shape) > 1)
    return f"llama.cpp chose {', '.join(f'{kind} for {count}' for kind, count in counts.most_common())}."


def _follow(sizes: Mapping[str, int], advance: Any) -> Listen:
    """Advances by a tensor when the next one is begun."""
    begun: list[str] = []

    def listen(event: Mapping[str, Any]) -> None:
        if begun:
            advance(sizes.get(begun[-1], 0))
        begun.append(str(event.get("tensor")))

    return listen


def emit_quantised(
    plan: ConversionPlan,
    job: GgufJob,
    destination: Path,
    quantisation: Quantisation,
    options: GgufOptions,
    progress: Progress,
    beside: Sequence[FileBeside] = (),
) -> QuantisedGguf:
    """Write the file and those beside it; all of them appear, or none. job: of the checkpoint's own types, in
    one file.
    """
    (file,) = job.files
    quantisation, notes = _matched(quantisation, file)
    _check_memory(quantisation)
    sizes = {tensor.name: tensor.nbytes for tensor, _ in file.tensors}
    with (
        termination_as_interrupt(),
        published(destination, 1, checkpoint_files(plan), OWN_FILE, beside) as place,
        Quantiser(quantisation, options.workers) as quantiser,
    ):
        (temporary,) = place.temporary
        whole = temporary.with_suffix(".float")
        try:
            forecast = quantiser.forecast(file)
            check_free_space(destination, job.nbytes + forecast.nbytes, ELSEWHERE)
            with progress.stage(f"Writing {destination.name}", job.nbytes, is_bytes=True) as advance:
                write_file(whole, file, advance, options.workers)
            title = f"Quantising {destination.name}"
            with progress.stage(title, sum(sizes.values()), is_bytes=True) as advance:
                quantiser.quantise(whole, temporary, listen=_follow(sizes, advance))
            kinds = _types_note(temporary)
        except RuntimeRefused as error:
            what = f"llama.cpp does not quantise it ({error.what})"
            raise BadInput(what, where=str(destination)) from None
        except RuntimeCrashed as error:
            raise RuntimeCrashed(error.what, where=str(destination), fix=error.fix) from None
        finally:
            with undisturbed():
                quantiser.close()  # before what it may be writing goes
                whole.unlink(missing_ok=True)
    return QuantisedGguf(
        paths=tuple(place.files),
        notes=(*job.notes, *notes, *_fallback_notes(forecast), kinds),
    )
