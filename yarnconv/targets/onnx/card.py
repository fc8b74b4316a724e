"""The model card: what the directory holds, how to run it, and how to check it."""

from typing import TYPE_CHECKING, Any

from yarnconv import __version__
from yarnconv.checkpoint.hub import model_name
from yarnconv.plan import ConversionPlan
from yarnconv.rope.request import RopeRequest
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.onnx.genai import default_length
from yarnconv.targets.onnx.lookup import Lookup
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.onnx.reader import Declared, OnnxModel
from yarnconv.targets.plan_card import check_options, plan_values
from yarnconv.targets.templates import markdown, render

if TYPE_CHECKING:
    import onnx

TABLE_TYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
BY_BUFFER = "It is declared by the length of the KV buffer that the client allocates."
BY_INPUT = "It is declared by the input `rope_context`, without which the largest factor holds."


def model_card(plan: ConversionPlan, options: GraphOptions) -> str:
    """The card in Markdown."""
    model, in_place = plan.description, options.kv == "in-place"
    values: dict[str, Any] = {
        **plan_values(plan.rope, options.max_context, BY_BUFFER if in_place else BY_INPUT),
        "version": __version__,
        "name": model_name(plan.checkpoint.directory),
        "family": model.family,
        "layers": len(model.layers),
        "key_value_heads": model.layers[0].attention.key_value_heads,
        "head_dim": model.layers[0].attention.head_dim,
        "vocab_size": model.vocab_size,
        "dtype": options.dtype,
        "cache_type": options.element.name.lower(),
        "padding": options.dialect == "standard",
        "in_place": in_place,
        "last_token_only": options.last_token_only,
        "default_length": default_length(plan, options),
        "rope_options": check_options(plan.request.given, options.max_context, plan.rope.target_context),
        "extends_a_model": False,
    }
    return render("onnx/README.md", values)


def _last_dimension(value: "onnx.ValueInfoProto") -> int | str:
    *_, last = [*value.type.tensor_type.shape.dim] or [None]
    return "vocabulary" if last is None else last.dim_value or "vocabulary"


def extended_card(
    model: OnnxModel,
    lookup: Lookup,
    rope: RopePlan,
    *,
    family: str | None,
    dtype: str,
    max_context: int,
    request: RopeRequest,
) -> str:
    """The card of a model whose tables were exchanged, as far as the graph tells its facts. family, dtype:
    of the model, by whoever knows. request: the rope options that make the plan of its checkpoint.
    """
    in_place, ours = model.in_place, lookup.rows is not None
    cache = Declared(element="", shape=[]) if model.cache is None else model.cache
    heads, width = [*cache.shape[1:2], "heads"][0], [*cache.shape[3:4], "width"][0]
    logits = [o for o in model.proto.graph.output if o.name == "logits"]
    values: dict[str, Any] = {
        **plan_values(
            rope,
            max_context,
            BY_BUFFER if in_place else BY_INPUT,
            table_type=TABLE_TYPES[lookup.cos.element],
            guarded=ours,
        ),
        "version": __version__,
        "name": model_name(model.directory),
        "family": family or "transformer",
        "layers": len(rope.main_group.layers),
        "key_value_heads": markdown(heads),
        "head_dim": markdown(width),
        "vocab_size": _last_dimension(logits[0]) if logits else "vocabulary",
        "dtype": dtype,
        "cache_type": cache.element.lower(),
        "padding": not any(n.op_type == "GroupQueryAttention" for n in model.proto.graph.node),
        "in_place": in_place,
        "last_token_only": model.last_token_only,
        "default_length": min(rope.original_context, max_context),
        "rope_options": check_options(request.given, max_context, rope.target_context),
        "extends_a_model": True,
    }
    return render("onnx/README.md" if ours else "onnx/extended.md", values)
