"""Laws of writing: a row never notices its neighbours, a seed fixes the text, and chances are those of the softmax."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llm
from llm.generation import generate, generate_steps
from llm.models.build import build_model
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from tests.conftest import TINY, random_ids, random_model

RAGGED = [[5], [17, 3, 40], [9, 8, 7, 6, 5, 4, 3, 2, 1]]   # lengths 1, 3, 9


def alone(model: Decoder, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    return [generate(model, [prompt], **settings)[0] for prompt in prompts]


@pytest.mark.parametrize("count", [1, 12, 60])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_the_same_alone_and_in_a_ragged_batch(tiny_model: Decoder, temperature: float, count: int) -> None:
    """60 tokens pass the context of 32 several times, each row at another moment."""
    settings: dict[str, Any] = {"max_new_tokens": count, "temperature": temperature, "seed": 3}
    batched = generate(tiny_model, RAGGED, **settings)
    assert batched == alone(tiny_model, RAGGED, **settings)
    assert [len(row) for row in batched] == [count] * 3
    assert batched[::-1] == generate(tiny_model, RAGGED[::-1], **settings)


def test_greedy_text_with_a_cache_is_that_without(tiny_model: Decoder) -> None:
    expected = []
    for prompt in RAGGED:
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(tiny_model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(prompt):])
    assert generate(tiny_model, RAGGED, max_new_tokens=12, temperature=0.0) == expected


def test_past_the_context_the_last_half_is_read_again(tiny_model: Decoder) -> None:
    window, expected = list(RAGGED[2]), []
    for _ in range(50):
        expected.append(int(tiny_model(torch.tensor([window])).logits[0, -1].argmax()))
        window.append(expected[-1])
        window = window if len(window) <= 32 else window[-16:]
    assert generate(tiny_model, [RAGGED[2]], max_new_tokens=50, temperature=0.0) == [expected]


def test_a_prompt_of_any_length_is_read_to_its_end(tiny_model: Decoder) -> None:
    long = random_ids(100).tolist()
    prompts = [long, long[:32], long[:33], [1]]
    rows = generate(tiny_model, prompts, max_new_tokens=5, temperature=0.0)
    assert rows == alone(tiny_model, prompts, max_new_tokens=5, temperature=0.0)
    assert rows[0][0] == int(tiny_model(torch.tensor([long[-32:]])).logits[0, -1].argmax())
    assert rows[0] == generate(tiny_model, [long[-32:]], max_new_tokens=5, temperature=0.0)[0]


@pytest.mark.parametrize("prompt", [[1], list(range(50))])
def test_sliding_is_said_once(prompt: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="llm"):
        generate(random_model(TINY["gpt"]), [prompt, [2]], max_new_tokens=100)
    assert len(caplog.records) == 1
    caplog.clear()
    generate(random_model(TINY["gpt"]), [[1, 2]], max_new_tokens=31)   # the last id is never read
    assert not caplog.records


def test_the_same_seed_writes_the_same_and_another_one_another_text(tiny_model: Decoder) -> None:
    def text(seed: int, count: int = 20) -> list[int]:
        return generate(tiny_model, [[1, 2]], max_new_tokens=count, seed=seed)[0]

    before = torch.get_rng_state()
    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(1, 20)[:7] == text(1, 7)   # and how long it may become changes nothing
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_prompts_in_a_batch_differ_from_each_other_but_not_from_run_to_run() -> None:
    model = random_model(TINY["qwen3"])
    rows = generate(model, [[1, 2]] * 3, max_new_tokens=20)
    assert len({tuple(row) for row in rows}) == 3
    assert rows == generate(model, torch.tensor([[1, 2]] * 3), max_new_tokens=20)   # type: ignore[arg-type]


def test_each_row_stops_at_its_own_end(tiny_model: Decoder) -> None:
    free = generate(tiny_model, RAGGED, max_new_tokens=40, seed=2)
    end = free[1][3]   # occurs early in one row
    expected = [row[: row.index(end) + 1] if end in row else row for row in free]
    assert generate(tiny_model, RAGGED, max_new_tokens=40, seed=2, eos_id=end) == expected
    assert len({len(row) for row in expected}) > 1
    steps = list(generate_steps(tiny_model, [RAGGED[1]], max_new_tokens=40, seed=2, eos_id=end))
    assert len(steps) == len(expected[1])   # nothing is computed after the last row has ended


def test_banned_ids_are_never_sampled_even_where_they_are_the_likeliest(tiny_model: Decoder) -> None:
    greedy = {token for row in generate(tiny_model, RAGGED, max_new_tokens=8, temperature=0.0) for token in row}
    banned = sorted(greedy)
    for temperature in (0.0, 0.5, 5.0):
        rows = generate(tiny_model, RAGGED, max_new_tokens=30, temperature=temperature, unused_ids=banned)
        assert not greedy & {token for row in rows for token in row}


def test_what_excludes_nothing_changes_nothing(tiny_model: Decoder) -> None:
    plain = generate(tiny_model, RAGGED, max_new_tokens=10)
    settings: dict[str, Any]
    for settings in ({"top_k": 0}, {"top_k": 61}, {"top_k": 1000}, {"top_p": 1.0}, {"top_k": None}):
        assert generate(tiny_model, RAGGED, max_new_tokens=10, **settings) == plain, settings


def test_random_numbers_of_rows_and_steps_are_uniform_and_independent() -> None:
    from llm.generation import _uniforms

    table = _uniforms([[token] for token in range(200)] + [[7]] * 200, seed=1, count=50)
    assert np.histogram(table, bins=10, range=(0, 1))[0] == pytest.approx(2000, abs=150)   # 3.5 standard deviations
    assert np.abs(np.corrcoef(table[:, 0], table[:, 1])[0, 1]) < 0.15   # 3 standard deviations of 400 pairs
    assert len(np.unique(table)) == table.size


def test_nothing_to_write_is_nothing(tiny_model: Decoder) -> None:
    assert generate(tiny_model, RAGGED, max_new_tokens=0) == [[], [], []]


@pytest.mark.parametrize(("prompts", "settings", "message"), [
    ([], {}, "there are no prompts"), ([[1], []], {}, "prompt 1 is empty"),
    ([[61]], {}, "outside the vocabulary of 61"), ([[-1]], {}, "outside the vocabulary"),
    ([[1]], {"temperature": -0.1}, "temperature=-0.1"),
    ([[1]], {"temperature": float("nan")}, "temperature=nan"), ([[1]], {"top_k": -1}, "top_k=-1"),
    ([[1]], {"top_p": 1.5}, "top_p=1.5"), ([[1]], {"max_new_tokens": -1}, "max_new_tokens=-1"),
    ([[1]], {"seed": -1}, "seed=-1"),
])
def test_what_makes_no_sense_is_named(prompts: list[list[int]], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(random_model(TINY["gpt"]), prompts, **{"max_new_tokens": 1, **settings})


def test_a_model_whose_dropout_is_on_is_refused() -> None:
    model = build_model(TINY["gpt"], dropout=0.1)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        generate(model, [[1]], max_new_tokens=1)
    assert generate(model.eval(), [[1]], max_new_tokens=1)
    assert generate(build_model(TINY["gpt"]).train(), [[1]], max_new_tokens=1)   # without dropout there is no harm


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = random_model(TINY["gpt"])
    torch.nn.init.constant_(model.final_norm.weight, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        generate(model, [[1]], max_new_tokens=1)


def test_under_autocast_the_cache_has_its_dtype_and_text_is_written(tiny_model: Decoder) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = generate(tiny_model, RAGGED, max_new_tokens=40, temperature=0.0)
    assert [len(row) for row in rows] == [40, 40, 40]


@pytest.mark.parametrize("family", ["gpt", "qwen3"])
def test_greedy_text_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours: Decoder = random_model(TINY[family])
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = [
        theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20,
                        do_sample=False, pad_token_id=0)[0, len(prompt):].tolist()
        for prompt in RAGGED
    ]
    assert generate(ours, RAGGED, max_new_tokens=20, temperature=0.0) == expected


def test_a_context_of_one_token_still_writes() -> None:
    config: ModelConfig = llm.GPTConfig(vocab_size=61, context_length=1, num_layers=1, num_heads=1, dim=8)
    assert len(generate(random_model(config), [[1, 2, 3]], max_new_tokens=5)[0]) == 5


def test_log_probs_are_those_of_the_model_itself(tiny_model: Decoder) -> None:
    """Whatever rules the sampling has."""
    rows: list[list[int]] = [list(prompt) for prompt in RAGGED]
    end = generate(tiny_model, RAGGED, max_new_tokens=8, seed=4, top_k=9)[0][2]
    for step in generate_steps(tiny_model, RAGGED, max_new_tokens=8, seed=4, top_k=9, eos_id=end, log_probs=True):
        for row, token, found in zip(rows, step.ids, step.log_probs, strict=True):
            assert (token is None) == (found is None)
            if token is not None:
                expected = tiny_model(torch.tensor([row])).logits[0, -1].log_softmax(-1)[token]
                assert found == pytest.approx(expected.item(), abs=1e-4)
                row.append(token)
    assert not next(generate_steps(tiny_model, RAGGED, max_new_tokens=1)).log_probs


def test_any_of_several_ends_and_a_stop_rule_end_a_row(tiny_model: Decoder) -> None:
    free = generate(tiny_model, RAGGED, max_new_tokens=20, seed=2)
    ends = {free[0][4], free[1][9]}
    expected = [row[: next((i for i, token in enumerate(row) if token in ends), 19) + 1] for row in free]
    assert generate(tiny_model, RAGGED, max_new_tokens=20, seed=2, eos_id=sorted(ends)) == expected
    assert generate(tiny_model, RAGGED, max_new_tokens=20, seed=2, stop=lambda ids: ids[-1] in ends) == expected


@pytest.mark.parametrize("settings", [
    {"repetition_penalty": 1.5}, {"no_repeat_ngram": 2}, {"repetition_penalty": 1.2, "no_repeat_ngram": 3},
])
def test_with_penalties_greedy_text_is_that_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = random_model(TINY["qwen3"])
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    renamed = {{"no_repeat_ngram": "no_repeat_ngram_size"}.get(name, name): value for name, value in settings.items()}
    prompts = [RAGGED[1], RAGGED[2], [3, 3, 3, 3]]
    expected = [
        theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20,
                        do_sample=False, pad_token_id=0, **renamed)[0, len(prompt):].tolist()
        for prompt in prompts
    ]
    assert generate(ours, prompts, max_new_tokens=20, temperature=0.0, **settings) == expected
    assert generate(ours, prompts, max_new_tokens=20, temperature=0.0) != expected


@pytest.mark.parametrize("settings", [{"no_repeat_ngram": 1}, {"presence_penalty": 1000.0},
                                      {"frequency_penalty": 1000.0}])
def test_what_forbids_repeating_gives_only_new_ids_to_each_row(settings: dict[str, Any]) -> None:
    """Also behind the end of a neighbour, and past the context."""
    model = random_model(TINY["gpt"])
    end = generate(model, RAGGED, max_new_tokens=40, **settings)[1][5]
    rows = generate(model, RAGGED, max_new_tokens=40, eos_id=end, **settings)
    assert rows == alone(model, RAGGED, max_new_tokens=40, eos_id=end, **settings)
    assert all(len(set(row)) == len(row) for row in rows)
    assert len({len(row) for row in rows}) > 1


def test_when_no_id_is_left_it_says_so() -> None:
    with pytest.raises(ValueError, match="every token is excluded; ban fewer, or lower no_repeat_ngram"):
        generate(random_model(TINY["gpt"]), [[1]], max_new_tokens=61, no_repeat_ngram=1)
