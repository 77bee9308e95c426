"""Laws of reading with a cache: however a text is cut into pieces, the logits behind it are those of one forward."""

from typing import Any

import pytest
import torch

import llm
from llm import generation
from llm.generation import Reader, generate
from llm.models.config import QwenConfig
from llm.models.decoder import Decoder
from llm.models.scaling import RopeScaling
from llm.nn import KVCache
from llm.nn.cache import LayerCache
from tests.conftest import TINY, random_ids, random_model

TEXT = random_ids(32).tolist()
WINDOW = QwenConfig(vocab_size=61, context_length=200, num_layers=2, num_heads=4, num_kv_heads=2, dim=16,
                    use_qk_norm=False, sliding_window=4)


STRETCHED = QwenConfig(vocab_size=61, context_length=200, num_layers=2, num_heads=4, num_kv_heads=2, dim=16,
                       rope_scaling=RopeScaling(kind="dynamic", factor=4.0, trained_context=50))


def plain(model: Decoder, row: list[int]) -> torch.Tensor:
    """(V,) logits behind a text, without a cache."""
    return model(torch.tensor([row])).logits[0, -1]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=1e-5)   # float32 sums in another order


@pytest.mark.parametrize("cuts", [[16], [7, 16], [1, 2, 16], [15, 16], [1, 31, 32]])
def test_a_text_read_in_pieces_is_the_text_read_at_once(tiny_model: Decoder, cuts: list[int]) -> None:
    reader = Reader(tiny_model)
    for cut in cuts:
        assert close(reader.read([TEXT[:cut]])[0], plain(tiny_model, TEXT[:cut]))


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_long_prompt_is_read_in_pieces(tiny_model: Decoder, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TEXT[:3], TEXT[:13], TEXT[4:20], TEXT[5:6]]
    monkeypatch.setattr(generation, "READ_TOKENS", size * len(rows))
    logits = Reader(tiny_model).read(rows)
    for found, row in zip(logits, rows, strict=True):
        assert close(found, plain(tiny_model, row))


def test_reading_on_id_by_id_up_to_the_end_of_the_context(tiny_model: Decoder) -> None:
    reader = Reader(tiny_model)
    reader.read([TEXT[:5], TEXT[:1]])
    for step in range(27):
        logits = reader.read_next([TEXT[5 + step], TEXT[1 + step]])
        assert close(logits[0], plain(tiny_model, TEXT[: 6 + step]))
        assert close(logits[1], plain(tiny_model, TEXT[: 2 + step]))
    with pytest.raises(ValueError, match="33 tokens exceed the model's context_length of 32"):
        reader.read_next([1, 1])


def test_a_second_turn_goes_on_from_what_it_shares_with_the_first(tiny_model: Decoder) -> None:
    """What was written in between is forgotten where the new text differs."""
    reader, seen = Reader(tiny_model), count_tokens(tiny_model)
    reader.read([TEXT[:10]])
    for token in (1, 2, 3):
        reader.read_next([token])
    for turn, num_new in [([*TEXT[:10], 1, 2, 9, 9], 2), ([*TEXT[:12]], 2), (TEXT[:4], 1), (TEXT[7:20], 13)]:
        seen.clear()
        logits, num_read = reader.read([turn])[0], sum(length for _, length in seen)
        assert close(logits, plain(tiny_model, turn))
        assert num_read == num_new or tiny_model.config.window   # a window may have dropped what is needed again


def test_an_interrupted_reading_leaves_nothing_wrong_behind(
    tiny_model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tiny_model)
    reader.read([TEXT[:10]])
    write = LayerCache.write

    def interrupt(self: LayerCache, *arguments: Any, **settings: Any) -> Any:
        if reader.cache is None or self is not reader.cache.layers[0]:
            raise KeyboardInterrupt   # in the middle: the second layer, or another cache
        return write(self, *arguments, **settings)

    for read in (lambda: reader.read_next([1]), lambda: reader.read([[*TEXT[:8], 2, 3]])):
        with monkeypatch.context() as patched:
            patched.setattr(LayerCache, "write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                read()
        assert close(reader.read([TEXT[:12]])[0], plain(tiny_model, TEXT[:12]))


@pytest.mark.parametrize("family", ["gpt", "qwen3"])
def test_equal_prompts_are_read_once_and_ended_rows_no_longer(family: str) -> None:
    tiny_model = random_model(TINY[family])
    seen = count_tokens(tiny_model)
    rows = generate(tiny_model, [TEXT[:9]] * 4, max_new_tokens=6, temperature=2.0)
    assert seen == [(1, 9)] + [(4, 1)] * 5
    assert len({tuple(row) for row in rows}) > 1
    end = rows[0][2]
    seen.clear()
    shorter = generate(tiny_model, [TEXT[:9]] * 4, max_new_tokens=6, temperature=2.0, eos_id=end)
    assert shorter == [row[: row.index(end) + 1] if end in row else row for row in rows]
    running = [sum(end not in row[: step + 1] for row in rows) for step in range(5)]
    assert seen == [(1, 9)] + [(count, 1) for count in running if count]


@pytest.mark.parametrize("lengths", [[30], [9, 30, 1]])
def test_behind_a_window_memory_does_not_grow_with_the_text(lengths: list[int]) -> None:
    model, text = random_model(WINDOW), random_ids(200).tolist()
    reader = Reader(model)
    rows = [text[:length] for length in lengths]
    logits = reader.read(rows)
    for _ in range(60):
        for found, row in zip(logits, rows, strict=True):
            assert close(found, plain(model, row))
        rows = [text[: len(row) + 1] for row in rows]
        logits = reader.read_next([row[-1] for row in rows])
    assert reader.cache is not None
    assert reader.cache.max_length <= 2 * 4 + max(lengths) - min(lengths) + 1


def test_behind_a_window_a_reader_goes_back_as_far_as_it_can() -> None:
    model, text = random_model(WINDOW), random_ids(60).tolist()
    reader, seen = Reader(model), count_tokens(model)
    for turn, num_read in [(text, 60), ([*text[:58], 9, 9], 2), ([*text[:30], 7], 31)]:   # the last from its beginning
        seen.clear()
        assert close(reader.read([turn])[0], plain(model, turn))
        assert sum(length for _, length in seen[:-1]) == num_read


def test_where_keys_depend_on_the_length_a_text_is_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a longer neighbour, which must not stretch it."""
    monkeypatch.setattr(generation, "READ_TOKENS", 8)
    model, text = random_model(STRETCHED), random_ids(200).tolist()
    reader = Reader(model)
    for length in (30, 45, 60, 90, 20):
        assert close(reader.read([text[:length]])[0], plain(model, text[:length]))
    rows = [text[:30], text[:100], text[:60]]
    for found, row in zip(reader.read(rows), rows, strict=True):
        assert close(found, plain(model, row))


def test_a_cache_that_is_too_small_grows_and_keeps_what_it_holds(tiny_model: Decoder) -> None:
    reader = Reader(tiny_model)
    reader.read([TEXT[:3]])
    assert reader.cache is not None and reader.cache.max_length == 3
    for token in TEXT[3:20]:
        logits = reader.read_next([token])
    assert close(logits[0], plain(tiny_model, TEXT[:20]))


def test_without_room_forward_refuses() -> None:
    model = random_model(TINY["gpt"])
    cache = model.new_cache(1, 4)
    model(torch.tensor([[1, 2, 3]]), cache=cache)
    with pytest.raises(ValueError, match="5 tokens exceed the cache's max_length of 4"):
        model(torch.tensor([[1, 2]]), cache=cache)
    cache.reset()
    assert (cache.length, cache.num_held) == (0, 0)
    model(torch.tensor([[1, 2, 3]]), cache=cache)


def test_a_cache_can_be_used_while_gradients_are_on() -> None:
    """A cache is no part of the graph, so that reading twice into it needs no care."""
    model = llm.GPT(TINY["gpt"])
    cache: KVCache = model.new_cache(1, 8)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), cache=cache)
    generate(model, [[1]], max_new_tokens=2)
    model(torch.tensor([[4]]), targets=torch.tensor([[5]])).loss_sum.backward()
    assert model.embed.weight.grad is not None


def count_tokens(model: Decoder) -> list[tuple[int, ...]]:
    """A list that every forward of the model appends the shape of its ids to."""
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, ids: seen.append(tuple(ids[0].shape)))
    return seen
