"""The forms in which checkpoints store weights: a tiny checkpoint's file rewritten in another, from a seed,
with what torch makes of it.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.models import edit_config

WEIGHTS = "model.safetensors"
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def rewrite(directory: Path, change) -> None:
    """change(tensors by name) -> what takes their place, or nothing where it changed them."""
    tensors = load_file(directory / WEIGHTS)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, directory / WEIGHTS, {"format": "pt"})


def as_in_memory(directory: Path) -> None:
    """The experts fused, as transformers 5 has them while it computes."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def _is_linear(name: str, value: torch.Tensor) -> bool:
    kept = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "shared_expert_gate")
    return value.ndim == 2 and name.endswith("weight") and not any(part in name for part in kept)


def to_fp8(directory: Path, block=(32, 32), factor_dtype=torch.float32, seed=11) -> dict[str, torch.Tensor]:
    """Every linear layer's weight as E4M3 codes and a factor for each block. Returns the float32 values that
    they stand for, by name.
    """
    random = torch.Generator().manual_seed(seed)
    tensors, exact = load_file(directory / WEIGHTS), {}
    for name, value in list(tensors.items()):
        if not _is_linear(name, value):
            continue
        rows, columns = (-(-size // step) for size, step in zip(value.shape, block, strict=True))
        factors = (value.std() / 8 * (0.5 + torch.rand(rows, columns, generator=random))).to(factor_dtype)
        wide = factors.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        wide = wide[: value.shape[0], : value.shape[1]]
        codes = (value.float() / wide).to(torch.float8_e4m3fn)
        tensors[name], tensors[f"{name}_scale_inv"] = codes, factors
        exact[name] = codes.float() * wide
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    edit_config(directory, quantization_config={**said, "weight_block_size": list(block)})
    return exact


def to_mxfp4(directory: Path, seed=12) -> dict[str, torch.Tensor]:
    """The matrices of gpt-oss's experts in MXFP4, as it was published. Returns the values that they stand
    for, as transformers has them: [experts, in, out].
    """
    random = torch.Generator().manual_seed(seed)
    tensors, exact = load_file(directory / WEIGHTS), {}
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=random)
        scales = torch.randint(120, 124, shape, dtype=torch.uint8, generator=random)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        pairs = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()
        values = torch.tensor(E2M1)[pairs] * torch.exp2(scales.float() - 127)[..., None]
        exact[name] = values.flatten(-2).swapaxes(1, 2).contiguous()
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})
    edit_config(
        directory, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    )
    return exact


def in_floats(directory: Path, exact: dict[str, torch.Tensor]) -> None:
    """A checkpoint in codes as the float checkpoint of the same values, which transformers loads anywhere."""
    codes = ("_scale_inv", "_blocks", "_scales")

    def change(tensors):
        kept = {name: value for name, value in tensors.items() if not name.endswith(codes)}
        return {**kept, **exact}

    rewrite(directory, change)
    config = json.loads((directory / "config.json").read_text())
    config.pop("quantization_config")
    (directory / "config.json").write_text(json.dumps(config))
