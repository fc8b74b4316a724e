"""Bad checkpoints: each its own message, exit 2 (3 where it is only not known), nothing left on disk, no
stack trace."""

import json
import pickle
import shutil
import struct

import pytest

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CASES = {}


def case(expected, code=2):
    """Register an edit of a good checkpoint with a fragment of the message it must lead to."""

    def register(edit):
        CASES[edit.__name__] = (edit, expected, code)
        return edit

    return register


def config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def header(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path, entries, data, length=None):
    packed = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    length = len(packed) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + packed + data)


def edit_header(directory, change):
    path = directory / WEIGHTS
    entries, data = header(path)
    change(entries)
    write(path, entries, data)


def first(entries):
    return next(name for name in entries if name != "__metadata__")


# -- config.json ----------------------------------------------------------------------------------


@case("there is no config.json")
def no_config(directory):
    (directory / "config.json").unlink()


@case("not valid JSON")
def config_not_json(directory):
    (directory / "config.json").write_text("{'model_type': 'llama'}")


@case("not valid JSON")
def config_not_text(directory):
    (directory / "config.json").write_bytes(b"\x80\x81\xfe\xff" * 4)


@case("holds a JSON list, not an object")
def config_a_list(directory):
    (directory / "config.json").write_text("[]")


@case("nested too deeply")
def config_bottomless(directory):
    (directory / "config.json").write_text('{"a":' * 100_000)


@case("not valid JSON")
def config_with_an_endless_number(directory):
    (directory / "config.json").write_text('{"hidden_size": ' + "9" * 5000 + "}")


@case("not a regular file")
def config_a_directory(directory):
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()


@case("is more than such a file can hold")
def config_of_a_gigabyte(directory):
    with (directory / "config.json").open("r+b") as file:
        file.truncate(2**30)


@case("Converted are: deepseek_v2", code=3)
def unknown_architecture(directory):
    config(directory, model_type="mamba", architectures=["MambaForCausalLM"])


@case("unknown architecture", code=3)
def architecture_at_odds_with_type(directory):
    config(directory, architectures=["LlamaForSequenceClassification"])


@case("unknown architecture")
def model_type_not_a_name(directory):
    config(directory, model_type=["llama"])


@case("hidden_size is 0")
def hidden_size_zero(directory):
    config(directory, hidden_size=0)


@case("num_attention_heads is -4")
def negative_heads(directory):
    config(directory, num_attention_heads=-4)


@case("intermediate_size is 'wide'")
def text_for_a_number(directory):
    config(directory, intermediate_size="wide")


@case("num_hidden_layers is 1000000000")
def a_billion_layers(directory):
    config(directory, num_hidden_layers=10**9)


@case("vocab_size is 1e+30")
def an_absurd_vocabulary(directory):
    config(directory, vocab_size=1e30)


@case("hidden_size is True")
def true_for_a_number(directory):
    config(directory, hidden_size=True)


@case("hidden_size is missing")
def missing_dimension(directory):
    path = directory / "config.json"
    values = json.loads(path.read_text())
    del values["hidden_size"]
    path.write_text(json.dumps(values))


@case("do not divide among 3 key/value heads")
def heads_at_odds(directory):
    config(directory, num_key_value_heads=3)


@case("rms_norm_eps is -1")
def negative_epsilon(directory):
    config(directory, rms_norm_eps=-1)


@case("tie_word_embeddings is 'yes'")
def a_switch_that_is_text(directory):
    config(directory, tie_word_embeddings="yes")


@case("rope_theta is 0")
def theta_zero(directory):
    config(directory, rope_parameters={"rope_type": "default", "rope_theta": 0.0})


@case("unknown RoPE scaling type 'spiral'")
def unknown_scaling(directory):
    config(directory, rope_scaling={"type": "spiral", "factor": 2.0})


@case("rope_theta is missing")
def theta_null(directory):
    config(directory, rope_parameters=None, rope_theta=None)


@case("the checkpoint is quantised")
def quantised(directory):
    config(directory, quantization_config={"quant_method": "gptq", "bits": 4})


@case("too large a number")
def a_number_of_400_digits(directory):
    config(directory, rope_scaling={"type": "yarn", "factor": 10**400})


@case("unknown key 'bogus' beside")
def a_stray_beside_layer_types(directory):
    yarn = {"rope_type": "yarn", "factor": 2.0}
    config(
        directory, layer_types=["full_attention"] * 3, rope_parameters={"full_attention": yarn, "bogus": 7}
    )


# -- weights --------------------------------------------------------------------------------------


@case("there is no model.safetensors")
def no_weights(directory):
    (directory / WEIGHTS).unlink()


@case("a pickle can run any code")
def pickled_weights(directory):
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


@case("truncated: 0 bytes")
def empty_safetensors(directory):
    (directory / WEIGHTS).write_bytes(b"")


@case("the file holds")
def truncated_safetensors(directory):
    path = directory / WEIGHTS
    entries, data = header(path)
    entries = {k: v for k, v in entries.items() if k == "__metadata__"}
    write(path, entries, data)


@case("lie outside")
def truncated_data(directory):
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


@case("more than the file holds")
def header_longer_than_the_file(directory):
    path = directory / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


@case("not valid JSON")
def header_not_json(directory):
    write(directory / WEIGHTS, b"{" * 64, b"")


@case("holds a JSON list")
def header_a_list(directory):
    write(directory / WEIGHTS, b"[]", b"")


@case("occurs twice")
def header_with_a_tensor_twice(directory):
    entry = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    write(directory / WEIGHTS, b'{"a":' + entry + b',"a":' + entry + b"}", b"\0" * 4)


@case("are not two whole numbers")
def negative_offset(directory):
    edit_header(directory, lambda e: e[first(e)].update(data_offsets=[-4, 0]))


@case("are not two whole numbers")
def offsets_of_floats(directory):
    edit_header(directory, lambda e: e[first(e)].update(data_offsets=[0.0, 4.0]))


@case("lie outside")
def offset_beyond_the_file(directory):
    edit_header(directory, lambda e: e[first(e)].update(data_offsets=[0, 2**50]))


@case("lie outside")
def offsets_backwards(directory):
    edit_header(directory, lambda e: e[first(e)].update(data_offsets=[400, 4]))


@case("overlaps")
def overlapping_tensors(directory):
    def change(entries):
        names = [n for n in entries if n.endswith("input_layernorm.weight")]
        entries[names[1]]["data_offsets"] = entries[names[0]]["data_offsets"]

    edit_header(directory, change)


@case("do not hold F32 values of shape")
def shape_at_odds_with_bytes(directory):
    edit_header(directory, lambda e: e[first(e)].update(shape=[7, 7]))


@case("is not a list of whole numbers")
def negative_shape(directory):
    edit_header(directory, lambda e: e[first(e)].update(shape=[-1, -1]))


@case("do not hold F32 values of shape")
def shape_that_overflows(directory):
    edit_header(directory, lambda e: e[first(e)].update(shape=[2**40, 2**40]))


@case("unknown dtype 'F33'")
def unknown_dtype(directory):
    edit_header(directory, lambda e: e[first(e)].update(dtype="F33"))


@case("header entry is not an object")
def entry_not_an_object(directory):
    edit_header(directory, lambda e: e.update({first(e): 7}))


@case("leaves a gap")
def gap_between_tensors(directory):
    path = directory / WEIGHTS
    entries, data = header(path)
    for entry in entries.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [o + 4 for o in entry["data_offsets"]]
    write(path, entries, b"\0" * 4 + data)


@case("has dtype I32")
def integer_weights(directory):
    edit_header(directory, lambda e: e["model.norm.weight"].update(dtype="I32"))


@case("model.norm.weight is missing")
def missing_tensor(directory):
    edit_header(directory, lambda e: e.update({"model.norm.w": e.pop("model.norm.weight")}))


@case("is left over")
def surplus_tensor(directory):
    path = directory / WEIGHTS
    entries, data = header(path)
    end = len(data)
    entries["model.layers.0.surprise"] = {
        "dtype": "F32",
        "shape": [1],
        "data_offsets": [end, end + 4],
    }
    write(path, entries, data + b"\0" * 4)


@case("but config.json makes it")
def wrong_shape(directory):
    config(directory, intermediate_size=192)


@case("is missing")
def more_layers_than_tensors(directory):
    config(directory, num_hidden_layers=5)


# -- the index of a sharded checkpoint ------------------------------------------------------------


def index(directory, weight_map):
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def whole_index(directory):
    return dict.fromkeys(n for n in header(directory / WEIGHTS)[0] if n != "__metadata__") | {}


@case("the shard model-00001-of-00001.safetensors is missing")
def missing_shard(directory):
    index(directory, {"model.norm.weight": "model-00001-of-00001.safetensors"})


@case("not a file name in the checkpoint's directory")
def path_out_of_the_directory(directory):
    shutil.copy(directory / WEIGHTS, directory.parent / "outside.safetensors")
    index(directory, dict.fromkeys(whole_index(directory), "../outside.safetensors"))


@case("not a file name in the checkpoint's directory")
def absolute_path(directory):
    index(directory, {"model.norm.weight": "/etc/passwd"})


@case("not a file name in the checkpoint's directory")
def path_that_is_a_number(directory):
    index(directory, {"model.norm.weight": 7})


@case("not a safetensors file")
def shard_of_another_kind(directory):
    index(directory, {"model.norm.weight": "config.json"})


@case("weight_map is not an object")
def no_weight_map(directory):
    (directory / INDEX).write_text("{}")


@case("not what weight_map says")
def index_at_odds_with_shard(directory):
    index(directory, {"model.norm.weight": WEIGHTS})


@case("a.tensor is missing")
def index_names_a_tensor_too_many(directory):
    names = dict.fromkeys(whole_index(directory), WEIGHTS)
    index(directory, {**names, "a.tensor": WEIGHTS})


# -- the tokenizer --------------------------------------------------------------------------------


@case("there is no tokenizer.json")
def no_tokenizer(directory):
    (directory / "tokenizer.json").unlink()


@case("not valid JSON")
def tokenizer_not_json(directory):
    (directory / "tokenizer.json").write_text("{")


@case("not a SentencePiece model")
def tokenizer_model_of_noise(directory):
    (directory / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\xff\x7fnoise")


@case("not a SentencePiece model")
def tokenizer_model_empty(directory):
    (directory / "tokenizer.model").write_bytes(b"")


def tokenizer(directory, change):
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@case("the tokenizer's model is 'Unigram'")
def tokenizer_of_another_kind(directory):
    tokenizer(directory, lambda d: d["model"].update(type="Unigram"))


@case("outside a vocabulary of 512")
def token_id_beyond_the_vocabulary(directory):
    tokenizer(directory, lambda d: d["model"]["vocab"].update(far=10**9))


@case("outside a vocabulary of 512")
def negative_token_id(directory):
    tokenizer(directory, lambda d: d["model"]["vocab"].update(below=-1))


@case("an entry has id")
def added_token_without_content(directory):
    tokenizer(directory, lambda d: d["added_tokens"].append({"id": 300}))


@case("beyond the vocabulary")
def added_token_beyond_the_vocabulary(directory):
    tokenizer(directory, lambda d: d["added_tokens"].append({"id": 10**7, "content": "x"}))


@case("merge 0 is")
def merge_of_three(directory):
    tokenizer(directory, lambda d: d["model"].update(merges=["a b c"]))


@case("merge 0 is")
def merge_of_numbers(directory):
    tokenizer(directory, lambda d: d["model"].update(merges=[[1, 2]]))


@case("vocab is not an object")
def vocabulary_missing(directory):
    tokenizer(directory, lambda d: d["model"].pop("vocab"))


@case("is none that is known")
def unknown_pre_tokenizer(directory):
    tokenizer(directory, lambda d: d.update(pre_tokenizer={"type": "Whitespace"}))


@case("has more than one id")
def one_token_twice(directory):
    tokenizer(directory, lambda d: d["added_tokens"].append({"id": 300, "content": "he"}))


@case("rules are not SentencePiece's")
def byte_fallback_without_sentencepiece(directory):
    tokenizer(directory, lambda d: d["model"].update(byte_fallback=True))


@case("a template is not a list")
def post_processor_of_text(directory):
    tokenizer(directory, lambda d: d.update(post_processor={"type": "TemplateProcessing", "single": "A"}))


@case("runtimes know one beginning")
def two_tokens_before_a_text(directory):
    def change(document):
        single = document["post_processor"]["processors"][1]["single"]
        single.insert(1, {"SpecialToken": {"id": "<|eot_id|>", "type_id": 0}})

    tokenizer(directory, change)


@case("runtimes know one beginning")
def another_beginning_than_bos(directory):
    def change(document):
        document["post_processor"]["processors"][1]["single"][0]["SpecialToken"]["id"] = "<|eot_id|>"

    tokenizer(directory, change)


@case("'BertProcessing' is not understood")
def unknown_post_processor(directory):
    tokenizer(directory, lambda d: d.update(post_processor={"type": "BertProcessing"}))


@case("is none that is known")
def split_behaviour_of_a_list(directory):
    tokenizer(directory, lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior=["x"]))


@case("neither a text nor a list of named ones")
def chat_template_of_numbers(directory):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": [{"name": []}]}))


@case("the id of")
def added_tokens_json_of_text(directory):
    (directory / "added_tokens.json").write_text('{"x": "y"}')


@pytest.mark.parametrize("name", CASES)
def test_hostile_checkpoint(name, checkpoints, yarnconv, tmp_path):
    edit, expected, exit_code = CASES[name]
    directory = tmp_path / "in" / "model"
    shutil.copytree(checkpoints("llama"), directory)
    edit(directory)
    out = tmp_path / "out"
    out.mkdir()
    code, stdout, stderr = yarnconv("gguf", directory, "--factor", "4", "-o", out)
    assert code == exit_code, stderr
    assert expected in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert stdout == ""
    assert list(out.iterdir()) == []


def test_there_are_enough_of_them():
    assert len(CASES) >= 40


def test_a_pickle_in_the_directory_is_never_opened(checkpoints, yarnconv, tmp_path):
    """A booby-trapped pytorch_model.bin beside good safetensors stays shut."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    directory = shutil.copytree(checkpoints("llama"), tmp_path / "model")
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert yarnconv("gguf", directory, "-o", tmp_path / "out.gguf")[0] == 0
    assert not (tmp_path / "sprung").exists()


def test_known_leftovers_are_skipped(checkpoints, yarnconv, tmp_path):
    directory = shutil.copytree(checkpoints("llama"), tmp_path / "model")
    path = directory / WEIGHTS
    entries, data = header(path)
    end = len(data)
    name = "model.layers.2.self_attn.rotary_emb.inv_freq"
    entries[name] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    write(path, entries, data + b"\0" * 4)
    assert yarnconv("gguf", directory, "-o", tmp_path / "out.gguf")[0] == 0
    entries[name.replace("2", "9")] = entries.pop(name)
    write(path, entries, data + b"\0" * 4)
    assert yarnconv("gguf", directory, "-o", tmp_path / "out.gguf")[0] == 2


def test_symbolic_links_within_the_directory_are_followed(checkpoints, yarnconv, tmp_path):
    """The Hub's cache is made of them."""
    store = shutil.copytree(checkpoints("llama"), tmp_path / "store")
    directory = tmp_path / "snapshot"
    directory.mkdir()
    for file in store.iterdir():
        (directory / file.name).symlink_to(file)
    assert yarnconv("gguf", directory, "-o", tmp_path / "out.gguf")[0] == 0
