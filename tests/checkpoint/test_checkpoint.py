"""Opening good checkpoints: one file or many, lazily, in the disk's order."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.models import make_checkpoint
from yarnconv.checkpoint.checkpoint import open_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", [None, "1MB"])
def test_tensors_hold_what_was_saved(dtype, shard, tmp_path):
    from safetensors.torch import load_file

    make_checkpoint(tmp_path, "qwen3", dtype=dtype, shard=shard, tokenizer=False)
    wanted = {}
    for path in tmp_path.glob("*.safetensors"):
        wanted |= load_file(path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(wanted)
        for name, tensor in wanted.items():
            values = checkpoint.tensor(name).load()
            assert values.shape == tuple(tensor.shape)
            assert not values.flags.writeable
            if dtype is torch.bfloat16:
                assert values.dtype == np.uint16
                tensor = tensor.view(torch.uint16)
            np.testing.assert_array_equal(values, tensor.numpy())
        places = [(ref.file.path.name, ref.offset) for ref in checkpoint.tensors.values()]
        assert places == sorted(places)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_are_closed(tmp_path):
    make_checkpoint(tmp_path, "llama", shard="1MB", tokenizer=False)
    before = open_descriptors()
    with open_checkpoint(tmp_path) as checkpoint:
        files = {ref.file for ref in checkpoint.tensors.values()}
        assert open_descriptors() >= before + len(files)
    del checkpoint, files  # the maps hold descriptors of their own
    assert open_descriptors() == before
