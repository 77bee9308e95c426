import base64
import copy
import hashlib
import json
import random
import sys

import pytest

from llm.tokenizers import bpe, formats, merges, patterns
from llm.tokenizers.tokenizer import Tokenizer
from llm.tokenizers.vocabulary import END_OF_TEXT, NotExact, Vocabulary
from tests.tokenizers.test_bpe_tokenizer import TEXTS, any_kind, trained
from tests.tokenizers.texts import MANY, check_ids


def auto_tokenizer(folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("pattern", "count"), [
    *[(pattern, 250) for pattern in [*patterns.PATTERNS, ""]],
    *[pytest.param(pattern, MANY, marks=pytest.mark.slow) for pattern in ("gpt2", "cl100k")],
])
def test_auto_tokenizer_reads_what_we_save_with_equal_ids(pattern, count, tmp_path):
    trained(pattern, special_tokens=["<|user|>", END_OF_TEXT]).save(tmp_path)
    again = Tokenizer.load(tmp_path)
    check_ids(tmp_path, again, count)
    assert auto_tokenizer(tmp_path).pad_token_id == again.pad_id


def test_saving_and_loading_changes_nothing(tmp_path):
    for place, tokenizer in enumerate(any_kind()):
        tokenizer.save(tmp_path / str(place))
        again = Tokenizer.load(tmp_path / str(place))
        again.save(tmp_path / "again")
        text = "我们 are, 13 x\n"
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.special_tokens, again.pad_id) == (tokenizer.special_tokens, tokenizer.pad_id)
        assert tokenizer.vocabulary.is_closed or again.encode(text) == tokenizer.encode(text)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / str(place) / name).read_bytes()


def test_control_tokens_and_chat_template_travel_with_the_folder(tmp_path):
    vocabulary = trained(special_tokens=["<|im_start|>", "<|im_end|>", END_OF_TEXT]).vocabulary
    template = "{{ messages }}\r\n"
    Tokenizer(vocabulary, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=template).save(tmp_path)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert again.chat_template == template
    with pytest.raises(ValueError, match=r"eos_token='<\|nobody\|>' is not one"):
        Tokenizer(vocabulary, eos_token="<|nobody|>")


def table_of(pattern="cl100k"):
    return copy.deepcopy(formats.write_json(trained(pattern).vocabulary))


def test_nfc_is_applied_between_control_tokens(tmp_path):
    trained().save(tmp_path)
    table = table_of() | {"normalizer": {"type": "NFC"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    check_ids(tmp_path, Tokenizer.load(tmp_path), 300)
    assert Tokenizer.load(tmp_path).encode("e\u0301") == trained().encode("é")


def test_bytes_that_the_vocabulary_lacks_are_dropped_as_tokenizers_drops_them(random_text, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    table = table_of()
    for byte in b"\0\x01\x7f!":
        lost = bpe.spell(bytes([byte]))
        table["model"]["merges"] = [merge for merge in table["model"]["merges"] if lost not in "".join(merge)]
        table["model"]["vocab"] = {token: i for token, i in table["model"]["vocab"].items() if lost not in token}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    ours, theirs = Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(ours.unused_ids) >= 4
    for text in ["-\0-", "!", "a!b", *(random_text(seed) for seed in range(300))]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def change(path, value):
    """A table in which one entry, named by its keys, is another."""
    table = table_of()
    *keys, last = path.split("/")
    place = table
    for key in keys:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    return table


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (change("model/type", "Unigram"), "Unigram"),
        (change("model/byte_fallback", True), "byte_fallback"),
        (change("model/dropout", 0.1), "dropout"),
        (change("model/unk_token", END_OF_TEXT), "unk_token"),
        (change("normalizer", {"type": "NFKC"}), "NFKC"),
        (change("pre_tokenizer", {"type": "Metaspace"}), "Metaspace"),
        (change("pre_tokenizer/pretokenizers/0/pattern", {"Regex": r"\w+|\W+"}), "patterns.py"),
        (change("pre_tokenizer/pretokenizers/1/add_prefix_space", True), "prefix space"),
        (change("decoder", {"type": "Metaspace"}), "decoder"),
        (change("added_tokens/0/lstrip", True), "space around"),
        (change("model/merges", table_of()["model"]["merges"][::-1]), "makes id"),
    ],
)
def test_what_tiktoken_cannot_reproduce_stops_at_the_gate(table, reason):
    with pytest.raises(NotExact, match=reason):
        formats.read_json(table)


def test_merges_that_are_not_those_of_their_ranks_stop_at_the_gate():
    vocab = {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "abc": 5}
    table = table_of("gpt2")
    table["model"] |= {"vocab": vocab, "merges": [["b", "c"], ["a", "b"], ["a", "bc"]]}
    assert formats.read_json(table).ranks[b"abc"] == 5
    table["model"]["merges"][2] = ["ab", "c"]   # "abc" is a|bc by then: this merge never comes to pass, its rank would
    with pytest.raises(NotExact, match="abc"):
        formats.read_json(table)


def test_splits_are_what_plain_bpe_ends_with():
    for seed in range(300):
        source = random.Random(seed)
        drawn = {bytes(source.choices(b"abc", k=source.randint(2, 5))) for _ in range(8)}
        ranks = {b"a": 0, b"b": 1, b"c": 2} | {token: 3 + place for place, token in enumerate(sorted(drawn))}
        expected = {}
        for token, rank in ranks.items():
            parts = merges.glue(token, ranks, rank)
            if len(parts) == 2:
                expected[token] = tuple(parts)
        # A part that BPE does not make of its own bytes is not looked for: then a token may be found by neither.
        found = merges.splits(ranks)
        assert found == {token: halves for token, halves in expected.items() if token in found}
        made = {*found, b"a", b"b", b"c"}
        assert all(token in found for token, halves in expected.items() if made.issuperset(halves))


def test_vocabularies_whose_tokens_bpe_does_not_make_keep_their_ids_when_saved(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    exact = 0
    for seed in range(200):
        source = random.Random(seed)
        drawn = {bytes(source.choices(b"ab", k=source.randint(2, 4))) for _ in range(5)}
        ranks = bpe.ranks([])
        ranks |= {token: 256 + place for place, token in enumerate(source.sample(sorted(drawn), len(drawn)))}
        ours = Tokenizer(Vocabulary(ranks, patterns.PATTERNS["gpt2"]))
        try:
            ours.save(tmp_path)
        except NotExact:
            continue
        exact += 1
        theirs, again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Tokenizer.load(tmp_path)
        for _ in range(100):
            text = "".join(source.choices("aab", k=source.randint(1, 12)))
            assert ours.encode(text) == theirs.encode(text).ids == again.encode(text)
    assert exact > 100


@pytest.fixture
def llama(tmp_path):
    """A SentencePiece-like tokenizer.json: marks for spaces, byte fallback."""
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi"]
    table = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": words[i], "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i in (0, 1)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>",
            "byte_fallback": True, "fuse_unk": True, "merges": [["▁", "h"], ["▁h", "i"]],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    return tmp_path


def test_other_tokenizers_run_on_the_package(llama, tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.load(llama)
    ids = tokenizer.encode("hi hi 学<s>")
    assert ids[:2] == [262, 262] and tokenizer.bos_id == 1 and 1 not in ids
    assert tokenizer.decode(ids) == "".join(tokenizer.stream(ids)) == "hi hi 学<s>"
    assert tokenizer.encode("hi<s>", allowed_special="all") == [262, 1]
    assert tokenizer.token_bytes[262] == b" hi" and tokenizer.vocab_size == 263
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_without_the_package_the_error_names_it_and_the_reason(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"byte_fallback|unk_token.*pip install 'llm-training\[hf\]'"):
        Tokenizer.load(llama)


def test_rank_files_are_read_by_path_and_checked_by_hash(tmp_path):
    tokenizer = trained("gpt2")
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in tokenizer.vocabulary.ranks.items()]
    path = tmp_path / "some.tiktoken"
    path.write_bytes(b"".join(lines))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    again = Tokenizer.from_tiktoken(path, pattern="gpt2", special_tokens=tokenizer.special_tokens, sha256=digest)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0]) and again.fingerprint == tokenizer.fingerprint
    with pytest.raises(ValueError, match="must name its pattern"):
        Tokenizer.load(path)
    path.write_bytes(b"".join(lines[:9]) + b"half a li")
    with pytest.raises(ValueError, match=f"expected {digest}"):
        Tokenizer.from_tiktoken(path, pattern="gpt2", sha256=digest)
    with pytest.raises(ValueError, match="line 10"):
        Tokenizer.from_tiktoken(path, pattern="gpt2")
