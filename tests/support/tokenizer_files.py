"""Small real tokenizers: byte-level BPE in each known spelling, SentencePiece trained on the spot."""

import json
import tomllib
from importlib import resources
from pathlib import Path

from yarnconv.targets.gguf.reader import open_gguf

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def byte_alphabet():
    """The 256 printable characters that stand for bytes in byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def split(pattern):
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def byte_level(use_regex):
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def pre_tokenizer(name, patterns=None):
    """The tokenizer.json spelling of one of llama.cpp's pre-tokenizers; `patterns` replaces those
    that the table keeps as digests."""
    table = resources.files("yarnconv.targets.gguf").joinpath("pretokenizers.toml")
    entry = tomllib.loads(table.read_text(encoding="utf-8"))[name]
    steps = []
    for kind, argument in entry["rules"]:
        if kind == "split":
            steps.append(split((patterns or {}).get(argument, argument)))
        elif kind == "digits":
            steps.append({"type": "Digits", "individual_digits": argument == "single"})
        else:
            steps.append(byte_level(use_regex=argument == "words"))
    return {"type": "Sequence", "pretokenizers": steps}, entry["ignore_merges"]


def template_processing(bos, bos_id):
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "Sequence",
        "processors": [
            byte_level(use_regex=True),
            {
                "type": "TemplateProcessing",
                "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    first,
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": bos, "type_id": 1}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
            },
        ],
    }


def bpe_tokenizer_json(vocab, merges, added, *, pre="llama-bpe", normalizer=None, patterns=None, bos=None):
    """A complete tokenizer.json. added: (id, content, special)."""
    rules, ignore_merges = pre_tokenizer(pre, patterns)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for token, content, special in added
        ],
        "normalizer": normalizer,
        "pre_tokenizer": rules,
        "post_processor": template_processing(*bos) if bos else byte_level(use_regex=False),
        "decoder": byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }


MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("e", "r"), ("1", "2"))


def write_byte_level(
    directory: Path, vocab_size: int, *, pre="llama-bpe", merges=MERGES, begins_with_bos=True
):
    """A byte-level tokenizer with a few merges and three special tokens; ids 256.. are merges."""
    alphabet = byte_alphabet()
    vocab = {character: index for index, character in enumerate(alphabet)}
    spelled = []
    for left, right in merges:
        spelled.append(f"{left} {right}")
        vocab[left + right] = len(vocab)
    first_special = len(vocab)
    added = [(first_special + i, content, True) for i, content in enumerate(SPECIAL)]
    added.append((first_special + len(SPECIAL), "<tool>", False))
    assert first_special + len(added) <= vocab_size
    bos = (SPECIAL[0], first_special) if begins_with_bos else None
    document = bpe_tokenizer_json(vocab, spelled, added, pre=pre, bos=bos)
    (directory / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({"bos_token": SPECIAL[0]} if begins_with_bos else {}),
        "eos_token": SPECIAL[1],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_sentencepiece(directory: Path, vocab_size: int):
    """A SentencePiece BPE model with byte fallback, as Llama 2 has it."""
    import io

    from sentencepiece import SentencePieceTrainer

    text = [f"the quick brown fox {n} jumps over {n * 7} lazy dogs, isn't it?" for n in range(400)]
    proto = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=proto,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(proto.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            "1": {"content": "<s>", "special": True},
            "2": {"content": "</s>", "special": True},
        },
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def rebuild_tokenizer(vocabulary: Path, directory: Path, *, pre, bos_template=True, patterns=None):
    """tokenizer.json and tokenizer_config.json of a real model, from the vocabulary-only GGUF that
    llama.cpp keeps for its tests."""
    import gguf

    with open_gguf(vocabulary) as file:  # the gguf package's reader takes 20 s
        fields = {
            key.removeprefix("tokenizer.ggml."): file.value(key)
            for key in file.packed
            if key.startswith("tokenizer.ggml.")
        }
    tokens, types = fields["tokens"], fields["token_type"]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    vocab = {token: i for i, token in enumerate(tokens) if types[i] == normal}
    added = [
        (i, token, types[i] == control)
        for i, token in enumerate(tokens)
        if types[i] in (control, gguf.TokenType.USER_DEFINED)
    ]
    bos = tokens[fields["bos_token_id"]] if "bos_token_id" in fields else None
    document = bpe_tokenizer_json(
        vocab,
        fields["merges"],
        added,
        pre=pre,
        patterns=patterns,
        bos=(bos, fields["bos_token_id"]) if bos and bos_template else None,
    )
    (directory / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[fields["eos_token_id"]],
        "chat_template": CHAT_TEMPLATE,
    }
    if bos:
        config["bos_token"] = bos
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return len(tokens)


def sentencepiece_as_json(model_file: Path, directory: Path):
    """The tokenizer.json of a SentencePiece BPE model, as Llama 2's conversions have it."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(model_file))
    size = processor.get_piece_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    scores = {piece: processor.get_score(i) for piece, i in vocab.items()}
    merges = [
        (scores[piece], f"{piece[:cut]} {piece[cut:]}")
        for piece in vocab
        if not processor.is_byte(vocab[piece]) and not processor.is_control(vocab[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges.sort(key=lambda merge: -merge[0])
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": processor.id_to_piece(i), "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i in range(3)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [merge for _, merge in merges],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return size


def vocabulary_only_gguf(directory: Path, vocab_size: int) -> Path:
    """A GGUF that holds a checkpoint's tokenizer as we write it, and no tensor."""
    from yarnconv.checkpoint.tokenizer import read_tokenizer
    from yarnconv.targets.gguf.file_format import Metadata, pack_header
    from yarnconv.targets.gguf.vocabulary import write_vocabulary

    metadata = Metadata()
    metadata.string("general.architecture", "llama")
    config = {"vocab_size": vocab_size}
    files = read_tokenizer(directory)
    write_vocabulary(metadata, files, config, pre=None, space_prefix_key=True)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        metadata.uint32(f"llama.{key}", 32)
    metadata.uint32("llama.attention.head_count", 1)
    metadata.float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    path = directory / "vocabulary.gguf"
    path.write_bytes(pack_header(metadata, []))
    return path
