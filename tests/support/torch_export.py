"""Tiny transformers models as torch's two exporters write them, and the graph that optimum-onnx writes."""

import warnings

import torch
import transformers

from tests.support.models import sharp_model, tiny_config

ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


def rope_config(rope_type, family="llama", **overrides):
    """The config of a tiny model with one layer."""
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **ROPES[rope_type]}
    values = {"max_position_embeddings": 1024, "num_hidden_layers": 1, **overrides, "rope_parameters": rope}
    return transformers.AutoConfig.for_model(**tiny_config(family, **values))


def reference(config):
    """float64[pairs] and the attention factor, as transformers computes them."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    rotary = model.model.rotary_emb
    return rotary.inv_freq.numpy().astype(float), float(rotary.attention_scaling)


class _Logits(torch.nn.Module):
    """The model without its cache."""

    def __init__(self, model):
        super().__init__()
        self.m = model

    def forward(self, input_ids, position_ids, attention_mask):
        given = {"position_ids": position_ids, "attention_mask": attention_mask}
        return self.m(input_ids=input_ids, use_cache=False, **given).logits


class _Cached(torch.nn.Module):
    """The model with its cache as flat inputs and outputs, as optimum-onnx has it."""

    def __init__(self, model):
        super().__init__()
        self.m = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        cache = transformers.DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        given = {"position_ids": position_ids, "attention_mask": attention_mask}
        made = self.m(input_ids=input_ids, past_key_values=cache, use_cache=True, **given)
        return made.logits, *(part for one in made.past_key_values.layers for part in (one.keys, one.values))


class _RotatedKeys(torch.nn.Module):
    """The part of optimum-onnx's graph that rotates: transformers 4's product of expanded frequencies with
    positions. optimum-onnx itself does not live with transformers 5."""

    def __init__(self, inv_freq, factor, width):
        super().__init__()
        self.inv_freq, self.factor = torch.nn.Buffer(inv_freq), factor
        self.k_proj = torch.nn.Linear(width, width, bias=False)
        self.embed = torch.nn.Embedding(16, width)

    def forward(self, input_ids, position_ids, past):
        expanded = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        angles = (expanded.float() @ position_ids[:, None, :].float()).transpose(1, 2)
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = (table[:, None] * self.factor for table in (both.cos(), both.sin()))
        keys = self.k_proj(self.embed(input_ids))[:, None]
        first, second = keys.chunk(2, dim=-1)
        keys = keys * cos + torch.cat((-second, first), dim=-1) * sin
        return torch.cat((past, keys), dim=2)


class _Decoder(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.model = inner

    def forward(self, *inputs):
        return self.model(*inputs)


def _quietly(model, inputs, out, **options):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, out / "model.onnx", **options)
    return out


def export(config, out, *, dynamo, dtype=torch.float32):
    """The directory of a model that torch.onnx writes."""
    out.mkdir()
    model = _Logits(sharp_model(config).to(dtype).eval())
    ids, positions = torch.ones(2, 7, dtype=torch.long), torch.arange(7)[None].expand(2, 7)
    inputs = ids, positions, torch.zeros(2, 1, 7, 7, dtype=dtype)
    names = {"input_names": ["input_ids", "position_ids", "attention_mask"], "output_names": ["logits"]}
    if not dynamo:
        axes = {name: {0: "batch", 1: "tokens"} for name in names["input_names"][:2]}
        return _quietly(model, inputs, out, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    shapes = {
        "input_ids": {0: "batch", 1: "tokens"},
        "position_ids": {0: "batch", 1: "tokens"},
        "attention_mask": {0: "batch", 2: "tokens", 3: "tokens"},
    }
    return _quietly(model, inputs, out, dynamo=True, verbose=False, dynamic_shapes=shapes, **names)


def export_cached(config, out):
    """The directory of a model with a cache, by the older exporter."""
    out.mkdir()
    names = [
        f"past_key_values.{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")
    ]
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    ids, positions = torch.ones(2, 7, dtype=torch.long), torch.arange(3, 10)[None].expand(2, 7)
    inputs = ids, torch.zeros(2, 1, 7, 10), positions, *(torch.zeros(2, heads, 3, width) for _ in names)
    axes = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "position_ids")}
    axes |= {"attention_mask": {0: "batch", 2: "tokens", 3: "all_tokens"}}
    axes |= {name: {0: "batch", 2: "past"} for name in names}
    return _quietly(
        _Cached(sharp_model(config).eval()),
        inputs,
        out,
        dynamo=False,
        opset_version=17,
        dynamic_axes=axes,
        input_names=["input_ids", "attention_mask", "position_ids", *names],
        output_names=["logits", *(name.replace("past_key_values", "present") for name in names)],
    )


def export_as_optimum(config, out, dtype=torch.float32):
    """The directory of a graph of optimum-onnx's shape and names, by the exporter that it uses. dtype: that
    the frequencies were rounded to."""
    out.mkdir()
    inv_freq, factor = reference(config)
    width = 2 * len(inv_freq)
    model = _Decoder(_RotatedKeys(torch.tensor(inv_freq).to(dtype).float(), factor, width))
    ids = torch.ones(2, 7, dtype=torch.long)
    inputs = ids, torch.arange(7)[None].expand(2, 7), torch.zeros(2, 1, 0, width)
    names = {
        "input_names": ["input_ids", "position_ids", "past_key_values.0.key"],
        "output_names": ["present.0.key"],
    }
    axes = {name: {0: "batch", 1: "tokens"} for name in names["input_names"][:2]}
    axes["past_key_values.0.key"] = {0: "batch", 2: "past"}
    config.save_pretrained(out)
    return _quietly(model, inputs, out, dynamo=False, opset_version=18, dynamic_axes=axes, **names)
