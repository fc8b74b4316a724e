"""The mistakes that exporters and people make in an ONNX decoder, each as an edit of a right one.

The right one is YaRN with factor 4 on an original context of 256, or the same dynamically: buckets of 256,
512 and 1024 positions. Edits know the graph of `yarnconv onnx` by its operators, not by its builder.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yarnconv.rope.scaling import Unscaled, Yarn
from yarnconv.rope.tables import buckets

FACTOR, ORIGINAL = 4.0, 256
TEMPERATURE = 1.0 + 0.1 * math.log(FACTOR)
STORED = {
    TensorProto.FLOAT: "<f4",
    TensorProto.FLOAT16: "<f2",
    TensorProto.BFLOAT16: "<u2",
    TensorProto.INT4: "u1",
    TensorProto.UINT8: "u1",
    TensorProto.FLOAT8E4M3FN: "u1",
}


class Editor:
    """A copy of a model directory, its graph to be edited, its external tensors written in place."""

    def __init__(self, source: Path, destination: Path):
        shutil.rmtree(destination, ignore_errors=True)
        shutil.copytree(source, destination)
        self.directory = destination
        self.model = onnx.load(destination / "model.onnx", load_external_data=False)
        self.graph = self.model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}

    def stored(self, name):
        """The bytes of an external tensor, mapped to be changed."""
        tensor = self.tensors[name]
        place = {entry.key: entry.value for entry in tensor.external_data}
        kind = STORED[tensor.data_type]
        count = int(place["length"]) // np.dtype(kind).itemsize
        file = self.directory / place["location"]
        flat = np.memmap(file, kind, "r+", offset=int(place["offset"]), shape=(count,))
        return flat if tensor.data_type == TensorProto.INT4 else flat.reshape(tensor.dims)

    @property
    def tables(self):
        return [name for name in self.tensors if name.startswith(("cos_cache", "sin_cache"))]

    def nodes(self, operator):
        return [node for node in self.graph.node if node.op_type == operator]

    def producer(self, value):
        return next(node for node in self.graph.node if value in node.output)

    def constant(self, values):
        name = f"edited_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        return name

    def save(self):
        (self.directory / "model.onnx").write_bytes(self.model.SerializeToString())
        return self.directory


def _write_tables(editor, scaling, first=0):
    """Another scaling's tables where the right ones stand, in the last bucket. first: whose row is row 0."""
    (tables,) = buckets(scaling)
    for name in editor.tables:
        stored = editor.stored(name)
        count = int(ORIGINAL * FACTOR)
        made = tables.cos if name.startswith("cos") else tables.sin
        stored[-1 - count : -1] = made(first, first + count)


def _yarn(editor, **changes):
    pairs = editor.tensors["cos_cache"].dims[1]
    whole = {"theta": 10000.0, "rotary_dim": 2 * pairs, "original_context": ORIGINAL, "factor": FACTOR}
    return Yarn(**{**whole, **changes})


def temperature_dropped(editor):
    _write_tables(editor, _yarn(editor, attention_factor=1.0))


def temperature_twice(editor):
    _write_tables(editor, _yarn(editor, attention_factor=TEMPERATURE**2))


def another_factor(editor):
    _write_tables(editor, _yarn(editor, factor=3.9))


def another_original_context(editor):
    _write_tables(editor, _yarn(editor, original_context=4 * ORIGINAL))


def plain_tables(editor):
    pairs = editor.tensors["cos_cache"].dims[1]
    _write_tables(editor, Unscaled(theta=10000.0, rotary_dim=2 * pairs))


def off_by_one_row(editor):
    """Every position a step too far: attention sees differences only, so no logit shows it."""
    _write_tables(editor, _yarn(editor), first=1)


def one_position_short(editor):
    """The last position's row is the one of no number, and there is none behind it."""
    for name in editor.tables:
        tensor = editor.tensors[name]
        editor.stored(name)[-2] = np.nan
        tensor.dims[0] -= 1
        length = next(entry for entry in tensor.external_data if entry.key == "length")
        length.value = str(4 * tensor.dims[0] * tensor.dims[1])
    for node in editor.nodes("Where"):
        for index, name in enumerate(node.input):
            constant = editor.tensors.get(name)
            if constant is not None and constant.data_type == TensorProto.INT64:
                rows = numpy_helper.to_array(constant)
                node.input[index] = editor.constant(rows - 1)


def half_precision_table(editor):
    for node in editor.nodes("Gather"):
        name = node.input[0]
        if name not in editor.tables:
            continue
        halves = np.array(editor.stored(name)).astype(np.float16)
        node.input[0] = editor.constant(halves)
        wide, output = f"{node.output[0]}_half", node.output[0]
        node.output[0] = wide
        cast = helper.make_node("Cast", [wide], [output], to=TensorProto.FLOAT)
        editor.graph.node.insert(list(editor.graph.node).index(node) + 1, cast)
    for name in editor.tables:
        editor.graph.initializer.remove(editor.tensors[name])


def _pairing(layer):
    def edit(editor):
        rotations = editor.nodes("RotaryEmbedding")
        each = len(rotations) // 3  # queries and keys together, or each by itself
        for node in rotations[each * layer : each * (layer + 1)]:
            attribute = next(a for a in node.attribute if a.name == "interleaved")
            attribute.i = 1 - attribute.i

    return edit


def top_left_mask(editor):
    """Queries ranked from the first slot on, as an upper-left causal mask has it."""
    (node,) = [n for n in editor.nodes("Slice") if editor.producer(n.input[0]).op_type == "CumSum"]
    new = next(n for n in editor.nodes("Shape") if n.input[0] == "input_ids")
    node.input[1] = editor.constant(np.array([0]))
    node.input[2] = new.output[0]


def mask_from_positions(editor):
    """As long as positions are ranks nothing is wrong with it; they need not be."""
    (own,) = editor.nodes("Max")
    one = editor.constant(np.array([1]))
    index = list(editor.graph.node).index(own)
    editor.graph.node.insert(index, helper.make_node("Add", ["position_ids", one], ["ranks_of_positions"]))
    own.input[0] = "ranks_of_positions"


def bucket_of_the_length_so_far(editor):
    """Short-regime keys stay in the cache when the sequence grows past the bucket."""
    (less,) = [
        n for n in editor.nodes("Less") if n.input[0] in editor.tensors and "position_ids" not in n.input
    ]
    so_far = helper.make_node("Shape", ["attention_mask"], ["length_so_far"], start=1, end=2)
    editor.graph.node.insert(0, so_far)
    less.input[1] = "length_so_far"


def bucket_boundary(editor):
    """A request of 257 is served by the original frequencies still."""
    (less,) = [
        n for n in editor.nodes("Less") if n.input[0] in editor.tensors and "position_ids" not in n.input
    ]
    reaches = numpy_helper.to_array(editor.tensors[less.input[0]])
    less.input[0] = editor.constant(reaches + np.array([1, 0]))


def no_guard_behind_the_table(editor):
    """What lies beyond a bucket is the next one's row."""
    for node in editor.nodes("Where"):
        condition = editor.producer(node.input[0])
        if condition.op_type == "And":
            everything = helper.make_node("Equal", [node.input[1], node.input[1]], ["everywhere"])
            editor.graph.node.insert(list(editor.graph.node).index(node), everything)
            node.input[0] = "everywhere"
            return


def altered_block(editor):
    """32 inputs' weights of a column or two in the last layer, which structure does not even run, replaced by
    their neighbours'."""
    name = "model.layers.2.mlp.gate_proj.weight"
    stored = editor.stored(name).reshape(editor.tensors[name].dims[0], -1)
    stored[:32, 5] = stored[:32, 6]


def swapped_tensors(editor):
    names = [f"model.layers.0.mlp.{which}_proj.weight" for which in ("gate", "up")]
    one, other = (editor.stored(name) for name in names)
    one[...], other[...] = np.array(other), np.array(one)
    if f"{names[0]}.scales" in editor.tensors:
        one, other = (editor.stored(f"{name}.scales") for name in names)
        one[...], other[...] = np.array(other), np.array(one)


def crossed_wires(editor):
    """The last layer normalises with another layer's norm: every tensor is right, the graph is not."""
    for node in editor.nodes("RMSNormalization"):
        if node.input[1] == "model.layers.2.post_attention_layernorm.weight":
            node.input[1] = "model.layers.1.post_attention_layernorm.weight"


def ones_for_norms(editor):
    """The checkpoint's weights of one kind of norm lie there, and nothing takes them."""
    ones = editor.constant(np.ones(256, np.float32))
    narrow = editor.graph.input[3].type.tensor_type.elem_type
    if narrow != TensorProto.FLOAT:
        cast = helper.make_node("Cast", [ones], ["ones_of_the_type"], to=narrow)
        editor.graph.node.insert(0, cast)
        ones = "ones_of_the_type"
    for node in editor.nodes("RMSNormalization"):
        if "post_attention" in node.input[1]:
            node.input[1] = ones


def positions_in_bfloat16(editor):
    """Whole numbers to 256 and even ones beyond, as mixed precision makes of positions."""
    narrow = helper.make_node("Cast", ["position_ids"], ["narrow_positions"], to=TensorProto.BFLOAT16)
    wide = helper.make_node("Cast", ["narrow_positions"], ["rounded_positions"], to=TensorProto.INT64)
    for node in editor.graph.node:
        node.input[:] = ["rounded_positions" if name == "position_ids" else name for name in node.input]
    editor.graph.node.insert(0, wide)
    editor.graph.node.insert(0, narrow)


def rows_in_bfloat16(editor):
    for node in editor.nodes("Gather"):
        if node.input[0] in editor.tables:
            exact, output = f"{node.output[0]}_exact", node.output[0]
            node.output[0] = exact
            after = list(editor.graph.node).index(node) + 1
            wide = helper.make_node("Cast", [f"{exact}_narrow"], [output], to=TensorProto.FLOAT)
            narrow = helper.make_node("Cast", [exact], [f"{exact}_narrow"], to=TensorProto.BFLOAT16)
            editor.graph.node.insert(after, wide)
            editor.graph.node.insert(after, narrow)


def decoys(editor):
    """The last layer's matrix is another; the right one lies there under its name, and nothing takes it."""
    name = "model.layers.2.mlp.down_proj.weight"
    for node in editor.graph.node:
        node.input[:] = ["another_matrix" if value == name else value for value in node.input]
    other = onnx.TensorProto()
    other.CopyFrom(editor.tensors["model.layers.1.mlp.down_proj.weight"])
    other.name = "another_matrix"
    editor.graph.initializer.append(other)


def attention_scale(editor):
    """Of the last layer."""
    node = [*editor.nodes("Attention"), *editor.nodes("GroupQueryAttention")][2]
    next(a for a in node.attribute if a.name == "scale").f *= 1.3


def _genai(key, value):
    def edit(editor):
        path = editor.directory / "genai_config.json"
        document = json.loads(path.read_text())
        section, name = key
        document[section][name] = value
        path.write_text(json.dumps(document))

    return edit


BOTH, ONLY_STRUCTURE = {"structure", "metadata"}, {"structure"}
# name -> (edit, the verdicts that must fail)
FAULTS = {
    "temperature dropped": (temperature_dropped, BOTH),
    "temperature twice": (temperature_twice, BOTH),
    "table of factor 3.9": (another_factor, BOTH),
    "table of original context x 4": (another_original_context, BOTH),
    "plain tables": (plain_tables, BOTH),
    "table off by one row": (off_by_one_row, {"metadata"}),
    "table one position short": (one_position_short, BOTH),
    "fp16 table": (half_precision_table, BOTH),
    "pairing swapped in layer 0": (_pairing(0), BOTH),
    "pairing swapped in layer 2, which is not run": (_pairing(2), BOTH),
    "mask upper-left causal": (top_left_mask, ONLY_STRUCTURE),
    "mask from position ids": (mask_from_positions, ONLY_STRUCTURE),
    "no guard behind the table": (no_guard_behind_the_table, ONLY_STRUCTURE),
    "one block altered": (altered_block, {"weights"}),
    "two tensors swapped": (swapped_tensors, {"weights"}),
    "layer 2 with a norm of layer 1": (crossed_wires, {"weights"}),  # its own is not there for any output
    "a norm's weights that nothing takes": (ones_for_norms, {"weights"}),
    "positions rounded to bfloat16": (positions_in_bfloat16, BOTH),
    "rows of the tables rounded to bfloat16": (rows_in_bfloat16, BOTH),
    "another matrix beside an unused right one": (decoys, {"weights"}),
    "attention scale of layer 2": (attention_scale, ONLY_STRUCTURE),
    "context_length of the client": (_genai(("model", "context_length"), 4096), {"metadata"}),
    "buffers not shared": (_genai(("search", "past_present_share_buffer"), False), {"metadata"}),
}
# those that only a dynamic model can have
DYNAMIC_FAULTS = {
    "bucket of the length so far": (bucket_of_the_length_so_far, ONLY_STRUCTURE),
    "bucket boundary off by one": (bucket_boundary, ONLY_STRUCTURE),
}
