"""An extended ONNX model's directory: new tables and what states the context, all else as it was.

The weights' files are hard-linked, or copied where that cannot be done; the source is never written to.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yarnconv.artifact import check_directory, check_free_space, staged_directory
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput
from yarnconv.progress import Advance
from yarnconv.rope_plan import provenance
from yarnconv.targets.beside import FileBeside
from yarnconv.targets.destination import check_destination, refuse_inside
from yarnconv.targets.linking import SPACE, copied_bytes, link_or_copy
from yarnconv.targets.onnx.card import extended_card
from yarnconv.targets.onnx.extension import Extension, ExtensionOptions, old_record
from yarnconv.targets.onnx.external_data import pieces
from yarnconv.targets.onnx.files import CARD_FILE, CONFIG_FILE, DATA_FILE, TABLES_FILE
from yarnconv.targets.onnx.rope import lay_out_tables
from yarnconv.targets.onnx.target import HEADROOM_BYTES
from yarnconv.targets.output_file import write_pieces
from yarnconv.targets.record import RECORD_KEY
from yarnconv.targets.templates import copy_runner

LINKED = (
    "Its weights are hard-linked: who changes them in place changes this model. Runtimes load them; the "
    "onnx package's own loader refuses files of two names.",
)
COPIED = ("Its weights are copies: hard links do not reach this place.",)


def _record(job: Extension) -> dict[str, Any]:
    """How it was made. The digest of the data is the source's: the data is."""
    layout = lay_out_tables(job.rope.main_group, job.rope.original_context, job.max_context)
    graph: dict[str, Any] = {"max_context": job.max_context, "bucket_contexts": list(layout.positions)}
    if job.lookup.rows is not None:
        attends = {node.op_type for node in job.model.proto.graph.node}
        form = {
            "dtype": job.dtype,
            "kv": "in-place" if job.model.in_place else "concat",
            "dialect": "ort-cuda" if "GroupQueryAttention" in attends else "standard",
        }
        graph = {**form, **graph}
    record = {**provenance(job.request, job.rope), "graph": graph}
    if job.carried.config is not None:
        record["config"] = dict(job.carried.config)
    digest = old_record(job.model).get("data_digest")
    kept = isinstance(digest, str) and DATA_FILE in {path.name for path in job.data}
    return {**record, "data_digest": digest} if kept else record


def _client_config(job: Extension) -> str | None:
    """genai_config.json with the new context, what else it says as it was; None where there is none."""
    path = job.model.directory / CONFIG_FILE
    if not path.exists():
        return None
    config = read_json_object(path)
    search = config.setdefault("search", {})
    if not isinstance(search, dict):
        raise BadInput("search is no object", where=CONFIG_FILE, fix="Correct it, or take the file away.")
    config["model"]["context_length"] = job.max_context
    # as in `genai`: a client gets the original context unless it asks for more
    search["max_length"] = min(job.rope.original_context, job.max_context)
    return json.dumps(config, indent=2) + "\n"


def _card(job: Extension) -> str:
    return extended_card(
        job.model,
        job.lookup,
        job.rope,
        family=job.carried.model.family if job.carried.model is not None else None,
        dtype=job.dtype,
        max_context=job.max_context,
        request=job.request,
    )


def _check_place(job: Extension, destination: Path, options: ExtensionOptions) -> None:
    own = (job.model.path.resolve().parent, job.model.directory)
    keeps = [(job.model.directory, "the model itself"), (job.model.path, "the model itself")]
    keeps += [(path, "the model's weights") for path in job.data]
    check_destination(destination, keeps, replace=options.replace)
    for directory in own:
        refuse_inside(destination, directory, "the model's own directory")
    check_directory(destination.parent)
    needed = job.table_bytes + HEADROOM_BYTES + job.graph.proto.ByteSize()
    needed += copied_bytes(job.data, destination.parent)
    needed += sum(path.stat().st_size for path in job.beside)
    check_free_space(destination, needed, SPACE)


def emit(
    job: Extension,
    destination: Path,
    options: ExtensionOptions,
    advance: Advance,
    extra: Sequence[FileBeside] = (),
) -> tuple[list[Path], tuple[str, ...]]:
    """Write the directory; it appears whole or not at all. Returns its files, the one to open first, and what
    to know of them. extra: what else is to stand in it.
    """
    from onnx import helper

    _check_place(job, destination, options)
    config = _client_config(job)
    proto = job.graph.proto
    others = {p.key: p.value for p in proto.metadata_props if p.key != RECORD_KEY}
    record = json.dumps(_record(job), separators=(",", ":"))
    helper.set_model_props(proto, {**others, RECORD_KEY: record})
    texts = {CARD_FILE: _card(job)}
    if config is not None:
        texts[CONFIG_FILE] = config
    with staged_directory(destination, replace=options.replace) as directory:
        linked = [link_or_copy(path, directory / path.name, advance) for path in job.data]
        tables = directory / TABLES_FILE
        write_pieces(tables, job.table_bytes, pieces(job.graph.tables), advance, options.workers)
        (directory / job.model.path.name).write_bytes(proto.SerializeToString(deterministic=True))
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
        for path in job.beside:
            shutil.copyfile(path, directory / path.name)
        for file in extra:
            file.write(directory / file.name)
        runner = copy_runner("onnx", directory) if job.lookup.rows is not None else []
    names = [job.model.path.name, *(path.name for path in job.data), TABLES_FILE, *texts]
    names += [path.name for path in (*job.beside, *runner)] + [file.name for file in extra]
    return [destination / name for name in names], LINKED if any(linked) else COPIED if linked else ()
