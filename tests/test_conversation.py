"""Laws of a conversation: reading only what is new changes nothing, and what leaves the context is told."""

from typing import Any

import pytest

import llm
from llm.conversation import Conversation
from llm.generation import generate
from llm.models.decoder import Decoder
from llm.tokenizers.chat import render
from llm.writing import unused_ids
from tests.conftest import random_model

TOKENIZER = llm.Tokenizer.train(["Hello there, what is tea? It is a drink. 你好"] * 5, 330,
                                special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
FAMILIES: dict[str, Any] = {
    "gpt": llm.GPTConfig(vocab_size=TOKENIZER.vocab_size, context_length=256, num_layers=1, num_heads=2, dim=16),
    "qwen": llm.QwenConfig(vocab_size=TOKENIZER.vocab_size, context_length=256, num_layers=2, num_heads=2, dim=16),
    "mistral": llm.QwenConfig(vocab_size=TOKENIZER.vocab_size, context_length=256, num_layers=2, num_heads=2, dim=16,
                              use_qk_norm=False, sliding_window=20),
}


def conversation(model: Decoder | None = None, **settings: Any) -> Conversation:
    settings = {"max_new_tokens": 12, "template": "chatml", "seed": 3, **settings}
    return Conversation(model or random_model(FAMILIES["qwen"]), TOKENIZER, **settings)


def say(chat: Conversation, text: str) -> str:
    return "".join(chat.answer(text))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_that_to_the_whole_conversation(family: str) -> None:
    """Whatever was read and written before, nothing of it is left over."""
    model = random_model(FAMILIES[family])
    chat = conversation(model, system="Be kind.")
    for turn in range(3):
        answer = say(chat, f"what is tea? {turn}")
        prompt = render(chat.messages[:-1], TOKENIZER, "chatml", add_generation_prompt=True).ids
        [ids] = generate(model, [prompt], max_new_tokens=12, seed=3 + turn, eos_id=chat.end_ids,
                         unused_ids=unused_ids(TOKENIZER, model))
        assert answer == TOKENIZER.decode(token for token in ids if token not in chat.end_ids)
        assert chat.messages[-1] == {"role": "assistant", "content": answer}
        assert chat.stats.num_written == len(ids)
        assert chat.stats.is_cut == (ids[-1] not in chat.end_ids)
        assert chat.stats.num_prompt == len(prompt)
        assert chat.stats.num_read <= len(prompt) - 30 * turn   # the beginning is not read again
    assert chat.stats.tokens_per_second > 0


def test_the_same_seed_is_the_same_conversation() -> None:
    talks = [[say(chat, text) for text in ("Hello", "tea")] for chat in (conversation(), conversation())]
    other = conversation(seed=8)
    assert talks[0] == talks[1] != [say(other, text) for text in ("Hello", "tea")]


def test_again_undo_and_reset() -> None:
    chat = conversation(system="Be kind.")
    first = say(chat, "Hello")
    again = "".join(chat.retry())
    assert again != first
    assert [message["content"] for message in chat.messages] == ["Be kind.", "Hello", again]
    assert chat.undo() and not chat.undo()
    assert [message["role"] for message in chat.messages] == ["system"]
    with pytest.raises(ValueError, match="no answer to write again"):
        chat.retry()
    chat.reset()
    assert say(chat, "Hello") == first
    chat.reset("Be quick.")
    assert chat.text() == "<|im_start|>system\nBe quick.<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_given_up_stays_as_far_as_it_went() -> None:
    chat = conversation()
    whole = say(conversation(), "Hello")
    pieces = chat.answer("Hello")
    shown = next(pieces) + next(pieces)
    pieces.close()   # type: ignore[attr-defined]
    assert chat.messages[-1]["content"] == shown
    assert whole.startswith(shown) and len(shown) < len(whole)
    say(chat, "Go on.")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_what_no_longer_fits_is_left_out_from_the_oldest_turn_on() -> None:
    chat = conversation(system="Be kind.", max_new_tokens=30)
    seen = []
    for turn in range(12):
        say(chat, f"what is tea? It is a drink number {turn}")
        seen.append(chat.num_left_out)
        assert chat.stats.num_prompt + 30 <= 256 and chat.stats.num_written <= 30
        text = chat.text()
        assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
        assert f"number {turn}" in text and ("number 0<" in text) == (chat.num_left_out == 0)
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] >= 4
    assert len(set(seen)) < 6   # several turns at once, so that not every answer reads everything again
    assert len(chat.messages) == 25   # nothing is forgotten, only left out


def test_a_message_longer_than_the_context_is_refused_and_not_kept() -> None:
    chat = conversation()
    say(chat, "Hello")
    with pytest.raises(ValueError, match="leaves no room for an answer in the model's context of 256; shorten it"):
        chat.answer("tea? " * 300)
    assert [message["content"] for message in chat.messages[:1]] == ["Hello"] and len(chat.messages) == 2
    assert say(chat, "Hello")


def test_a_model_without_a_template_chats_in_plain_text_and_stops_before_my_turn() -> None:
    model = random_model(FAMILIES["qwen"])
    chat = Conversation(model, TOKENIZER, max_new_tokens=40)
    assert "\nUser:" in chat.stop_strings
    answer = say(chat, "Hello")
    middle = answer[3:6]
    other = Conversation(model, TOKENIZER, max_new_tokens=40, stop_strings=[middle])
    assert say(other, "Hello") == answer[: answer.index(middle)]
    assert not other.stats.is_cut


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="max_new_tokens=0 must be at least 1"):
        conversation(max_new_tokens=0)
    with pytest.raises(ValueError, match="neither Jinja text nor one of"):
        conversation(template="chat")
