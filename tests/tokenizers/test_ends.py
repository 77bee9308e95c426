"""The token behind every text: transformers puts it there too, and a folder remembers it."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llm.tokenizers.ends import added_end, with_end
from llm.tokenizers.tokenizer import Tokenizer


@pytest.mark.parametrize("plain", [Tokenizer.byte_level(), Tokenizer.train(["low lower lowest"], vocab_size=262)],
                         ids=["bytes", "bpe"])
def test_transformers_ends_a_text_with_it_and_so_do_we(plain: Tokenizer, tmp_path: Path) -> None:
    with_end(plain).save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert added_end(plain) is None and added_end(again) == plain.eos_id
    for text in ("slow lower", "", "<|endoftext|>?"):
        assert again.encode(text) == plain.encode(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == [*plain.encode(text), plain.eos_id]
    assert theirs("slow", "low")["input_ids"] == [*plain.encode("slow"), plain.eos_id,
                                                  *plain.encode("low"), plain.eos_id]


def test_a_token_before_a_text_is_none_behind_it() -> None:
    plain = Tokenizer.byte_level()
    table = with_end(plain).vocabulary.source
    assert table is not None
    table["post_processor"]["single"].reverse()
    assert added_end(Tokenizer.from_json(table, where="here")) is None


def test_characters_have_no_end() -> None:
    letters = Tokenizer.character_level("abc")
    assert added_end(letters) is None
    with pytest.raises(ValueError, match="no end-of-text token"):
        with_end(letters)
