"""What a classifier is made of: the token that it pads with."""

from dataclasses import replace

import pytest

from llm.classification.fit import PAD, with_pad
from llm.tokenizers.ends import with_end
from llm.tokenizers.tokenizer import Tokenizer


@pytest.mark.parametrize(("more", "settings", "pad"), [
    ((), {}, PAD),
    ((PAD,), {}, PAD),
    (("<a>", "<b>"), {}, "<b>"),
    (("<a>", "<b>"), {"pad_token": "<a>"}, "<a>"),
    (("<right_pad_id>", "<b>"), {}, "<right_pad_id>"),
    (("<a>", "<b>"), {"bos_token": "<b>"}, "<a>"),
    (("<a>", "<b>"), {"chat_template": "<b>{{ messages[0]['content'] }}"}, "<a>"),
    (("<a>",), {"chat_template": "<a>{{ messages[0]['content'] }}"}, PAD),
    (("<a>",), {"eos_token": "<a>", "bos_token": "<|endoftext|>"}, PAD),
], ids=str)
def test_a_control_token_pads_that_is_used_for_nothing_else(
        more: tuple[str, ...], settings: dict[str, str], pad: str) -> None:
    plain = Tokenizer.byte_level().vocabulary
    ids = {name: 257 + place for place, name in enumerate(more)}
    tokenizer = Tokenizer(replace(plain, special_tokens={**plain.special_tokens, **ids}), **settings)
    padded = with_pad(tokenizer)
    assert padded.pad_token == pad and padded.pad_id == ids.get(pad, tokenizer.vocab_size)
    assert padded.vocab_size == max(tokenizer.vocab_size, 257 + len(ids) + (pad not in ids))
    assert (padded.eos_token, padded.bos_token) == (tokenizer.eos_token, tokenizer.bos_token)
    assert padded.pad_id not in padded.encode("".join([*more, pad]))


def test_what_stands_around_a_text_does_not_pad() -> None:
    plain = Tokenizer.byte_level().vocabulary
    ended = with_end(Tokenizer(replace(plain, special_tokens={"<end>": 257}), eos_token="<end>"))
    tokenizer = Tokenizer(replace(ended.vocabulary, special_tokens={"<end>": 257, "<other>": 258}), eos_token="<other>")
    assert with_pad(tokenizer).pad_token == PAD
