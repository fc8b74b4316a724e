"""Runs in a process of its own: an assertion in ggml kills the interpreter it stands in.

Reads one JSON request per line (path, tokens, context, first) and answers each with one JSON line
naming a .npy file of float32 logits [positions, vocabulary] from position `first` on.
"""

import ctypes
import json
import os
import sys

import llama_cpp
import numpy as np


def run(path, tokens, context, first, out):
    model_params = llama_cpp.llama_model_default_params()
    # the accelerated weight layouts of some CPUs are not what is judged here
    model_params.use_extra_bufts = False
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    if not model:
        raise RuntimeError("llama.cpp does not load the file")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = context
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 2
    # float32 keys and values and no flash attention: 1.9e-6 instead of 1.6e-4 of noise
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    params.offload_kqv = False
    handle = llama_cpp.llama_init_from_model(model, params)
    if not handle:
        raise RuntimeError("llama.cpp makes no context")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = []
    for start in range(0, len(tokens), 512):
        chunk = tokens[start : start + 512]
        batch = llama_cpp.llama_batch_init(len(chunk), 0, 1)
        batch.n_tokens = len(chunk)
        for i, token in enumerate(chunk):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = start + i >= first
        if llama_cpp.llama_decode(handle, batch) != 0:
            raise RuntimeError("llama_decode failed")
        for i in range(len(chunk)):
            if start + i >= first:
                pointer = llama_cpp.llama_get_logits_ith(handle, i)
                rows.append(np.ctypeslib.as_array(pointer, (vocab_size,)).copy())
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(handle)
    llama_cpp.llama_model_free(model)
    np.save(out, np.stack(rows))


def tokenize(path, text):
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise RuntimeError("llama.cpp does not load the vocabulary")
    vocab = llama_cpp.llama_model_get_vocab(model)
    data = text.encode()
    tokens = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, False)
    llama_cpp.llama_model_free(model)
    return list(tokens[:count])


def main():
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    if not os.environ.get("LLAMA_VERBOSE"):
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "text" in request:
                answer = {"tokens": tokenize(request["path"], request["text"])}
            else:
                run(**request)
                answer = {"ok": True}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


main()
