"""The tokenizers of the real families: small vocabularies under the pre-tokenizer, normalizer and flags of each.

They are trained by the package `tokenizers`, in files as the families publish them; the ids are AutoTokenizer's.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llm.tokenizers import patterns
from llm.tokenizers.formats import PUBLISHED, NotExact, read_json
from llm.tokenizers.tokenizer import Tokenizer
from tests.tokenizers.test_bpe_tokenizer import TEXTS
from tests.tokenizers.texts import MANY, check_ids, random_text

tokenizers = pytest.importorskip("tokenizers")

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def split_by(name: str) -> dict[str, Any]:
    """The usual pre-tokenizer of newer families."""
    split = {"type": "Split", "pattern": {"Regex": PUBLISHED[name]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTES]}


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "pre": BYTES | {"use_regex": True, "trim_offsets": True}, "special": ["<|endoftext|>"], "normalized": True,
        "config": {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
                   "unk_token": "<|endoftext|>"},
    },
    "qwen3": {
        "pre": split_by("qwen2"), "normalizer": {"type": "NFC"},
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"],
        "text": ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>", "<think>", "</think>"],
        "config": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                   "chat_template": "{{ messages }} in the config"},
    },
    "llama3": {
        "pre": split_by("cl100k"), "ignore_merges": True,
        "special": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "config": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
                   "eos_token": "<|eot_id|>"},
        "template": "{{ messages }} beside it\r\n",
    },
    "smollm2": {
        "pre": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                      BYTES | {"use_regex": True, "trim_offsets": True}]},
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"], "lacks": "\0\x01\x02\x7f",
        "config": {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                   "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    },
    "mistral (tekken)": {
        "pre": split_by("tekken"), "ignore_merges": True, "special": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        "config": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                   "unk_token": "<unk>"},
    },
}


def write_family(name: str, folder: Path) -> Path:
    """A folder as the family publishes it, with a small vocabulary."""
    family = FAMILIES[name]
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    empty = json.loads(engine.to_str()) | {"pre_tokenizer": family["pre"], "normalizer": family.get("normalizer")}
    engine = tokenizers.Tokenizer.from_str(json.dumps(empty))
    lost = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        family.get("lacks", ""))
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - set("".join(piece for piece, _ in lost))
    engine.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=sorted(alphabet), show_progress=False))
    flags = {"normalized": family.get("normalized", False)}
    engine.add_special_tokens([tokenizers.AddedToken(token, **flags) for token in family["special"]])
    engine.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in family.get("text", [])])
    table = json.loads(engine.to_str()) | {"decoder": BYTES}
    table["model"]["ignore_merges"] = family.get("ignore_merges", False)
    bos = family["config"].get("bos_token")
    if name == "llama3":
        table["post_processor"] = {"type": "TemplateProcessing", "pair": [], "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [engine.token_to_id(bos)], "tokens": [bos]}}}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(family["config"]), encoding="utf-8")
    if template := family.get("template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize(("name", "count"), [
    *[(name, 400) for name in FAMILIES],
    *[pytest.param(name, MANY, marks=pytest.mark.slow) for name in FAMILIES],
])
def test_the_ids_are_those_of_auto_tokenizer(name: str, count: int, tmp_path: Path) -> None:
    folder = write_family(name, tmp_path / "model")
    ours = Tokenizer.load(folder)
    assert type(ours) is Tokenizer   # not one that runs on the package itself
    # transformers 5 takes every GPT2Tokenizer for GPT-2's own, and so misses that SmolLM2 cuts digits
    transformers = pytest.importorskip("transformers")
    auto = transformers.PreTrainedTokenizerFast if name == "smollm2" else transformers.AutoTokenizer
    check_ids(folder, ours, count, load=auto.from_pretrained)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_folder_that_we_save_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(write_family(name, tmp_path / "model"))
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == ours.fingerprint and again.chat_template == ours.chat_template
    check_ids(tmp_path / "again", again, 100)


def test_chat_templates_are_kept_wherever_they_stand(tmp_path: Path) -> None:
    folder = write_family("qwen3", tmp_path)
    assert Tokenizer.load(folder).chat_template == "{{ messages }} in the config"
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert Tokenizer.load(folder).chat_template == "yes"
    (folder / "chat_template.jinja").write_text("beside", encoding="utf-8")
    assert Tokenizer.load(folder).chat_template == "beside"
    settings["chat_template"] = 3
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is damaged: chat_template = 3 is no text"):
        Tokenizer.load(folder)


def test_text_tokens_are_found_in_every_text_and_control_tokens_are_not(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_family("qwen3", tmp_path))
    think, end = tokenizer.vocabulary.text_tokens["<think>"], tokenizer.special_tokens["<|im_end|>"]
    ids = tokenizer.encode("a<think>b<|im_end|>")
    assert ids.count(think) == 1 and end not in ids
    assert tokenizer.decode(ids) == "".join(tokenizer.stream(ids)) == "a<think>b<|im_end|>"
    assert tokenizer.byte_counts[think] == 7 and tokenizer.byte_counts[end] == 0


def test_a_long_text_is_never_cut_inside_a_text_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "PIECE_CHARACTERS", 5)
    tokenizer = Tokenizer.load(write_family("qwen3", tmp_path))
    for seed in range(200):
        text = random_text(seed, 200, tokenizer.vocabulary.text_tokens)
        pieces = list(patterns.pieces(text))
        assert [token_id for piece in pieces for token_id in tokenizer.encode(piece)] == tokenizer.encode(text), pieces


def test_a_text_token_with_a_part_to_play_is_a_control_token(tmp_path: Path) -> None:
    folder = write_family("qwen3", tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | {"eos_token": "</think>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_id is not None and tokenizer.eos_id not in tokenizer.encode("</think>")
    check_ids(folder, tokenizer, 100)


@pytest.mark.parametrize(("changes", "normalizer", "reason"), [
    ({"<think>": {"normalized": True}}, {"type": "NFC"}, "'<think>' is looked for in normalized text"),
    ({"<think>": {"content": "|im_end"}}, None, "can overlap in a text, and are of two kinds"),
    ({"<think>": {"content": "end|><a>"}}, None, "can overlap in a text, and are of two kinds"),
    ({"<|im_start|>": {"normalized": True, "content": "x<thi"}}, None, "can overlap in a text"),
])
def test_added_tokens_that_would_be_found_otherwise_stop_at_the_gate(
    changes: dict[str, Any], normalizer: Any, reason: str, tmp_path: Path
) -> None:
    table = json.loads((write_family("qwen3", tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    table["normalizer"] = normalizer
    for token in table["added_tokens"]:
        token |= changes.get(token["content"], {})
    with pytest.raises(NotExact, match=reason):
        read_json(table)


def test_the_pattern_of_llama_cpp_is_its_chain_of_splits() -> None:
    """Each of its expressions cuts the pieces that the one before has left."""
    pre = tokenizers.pre_tokenizers
    chain = pre.Sequence([pre.Split(tokenizers.Regex(expression), "isolated") for expression in (
        r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"\p{N}+", "[0-9][0-9][0-9]")])
    for seed in range(3000):
        text = random_text(seed, 60, ["<|x|>"])
        assert patterns.split(text, "llamacpp") == [piece for piece, _ in chain.pre_tokenize_str(text)], repr(text)
