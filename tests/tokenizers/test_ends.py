"""The tokens around every text: transformers puts them there too, and a folder remembers them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from llm.classification.augment import Versions
from llm.classification.judge import encode
from llm.tokenizers.ends import ends, with_end
from llm.tokenizers.formats import write_json
from llm.tokenizers.tokenizer import Tokenizer


@pytest.mark.parametrize("plain", [Tokenizer.byte_level(), Tokenizer.train(["low lower lowest"], vocab_size=262)],
                         ids=["bytes", "bpe"])
def test_transformers_ends_a_text_with_it_and_so_do_we(plain: Tokenizer, tmp_path: Path) -> None:
    with_end(plain).save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ends(plain) == ([], []) and ends(again) == ([], [plain.eos_id])
    for text in ("slow lower", "", "<|endoftext|>?"):
        assert again.encode(text) == plain.encode(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == [*plain.encode(text), plain.eos_id]
    assert theirs("slow", "low")["input_ids"] == [*plain.encode("slow"), plain.eos_id,
                                                  *plain.encode("low"), plain.eos_id]


def beginning(steps: list[dict[str, Any]]) -> Tokenizer:
    """Bytes with two control tokens, and steps that put something around a text."""
    plain = Tokenizer.byte_level().vocabulary
    table = write_json(replace(plain, special_tokens={**plain.special_tokens, "<bos>": 257, "<sep>": 258}))
    processor = steps[0] if len(steps) == 1 else {"type": "Sequence", "processors": steps}
    return Tokenizer.from_json({**table, "post_processor": processor}, where="here", bos_token="<bos>")


def template(single: str) -> dict[str, Any]:
    ids = {"<bos>": 257, "<sep>": 258}
    marks = [{"Sequence": {"id": name, "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}
             for name in single.split()]
    return {"type": "TemplateProcessing", "single": marks,
            "pair": [*marks, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ids}}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
ROBERTA = {"type": "RobertaProcessing", "sep": ["<sep>", 258], "cls": ["<bos>", 257], "trim_offsets": True,
           "add_prefix_space": False}


@pytest.mark.parametrize(("steps", "before", "behind"), [
    ([template("<bos> A")], [257], []),
    ([BYTES, template("<bos> A")], [257], []),   # Llama 3
    ([template("<bos> <sep> A <sep>")], [257, 258], [258]),
    ([ROBERTA], [257], [258]),
    ([BYTES], [], []),
], ids=["bos", "Llama 3", "several", "RoBERTa", "none"])
def test_what_stands_around_a_text_is_what_transformers_puts_there(
        steps: list[dict[str, Any]], before: list[int], behind: list[int], tmp_path: Path) -> None:
    plain = beginning(steps)
    ended = plain if behind else with_end(plain)
    assert ends(plain) == (before, behind) and ends(ended) == (before, behind or [256])
    for name, ours in (("plain", plain), ("ended", ended)):
        ours.max_length = 7
        ours.save(tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        again = Tokenizer.load(tmp_path / name)
        for text in ("a", "tea", "a longer text"):
            ids = theirs(text, truncation=True)["input_ids"]
            assert ids == encode([text], again, context=7)[0][0]
            unchanged = Versions([text], again, context=7, bpe_dropout=0.0, token_dropout=0.0)
            assert unchanged(0, np.random.default_rng(1)) == ids


def test_tokens_around_a_text_are_never_left_out() -> None:
    ended = with_end(beginning([template("<bos> A")]))
    versions = Versions(["tea and bread"], ended, context=9, bpe_dropout=0.0, token_dropout=0.9)
    for seed in range(50):
        ids = versions(0, np.random.default_rng(seed))
        assert (ids[0], ids[-1]) == (257, 256) and 3 <= len(ids) <= 9


def test_a_context_that_the_tokens_around_a_text_fill_is_refused() -> None:
    with pytest.raises(ValueError, match=r"context=2 has no room .* give 3 at least"):
        encode(["tea"], with_end(beginning([template("<bos> A")])), context=2)


def test_characters_have_no_end() -> None:
    letters = Tokenizer.character_level("abc")
    assert ends(letters) == ([], [])
    with pytest.raises(ValueError, match="no end-of-text token"):
        with_end(letters)
