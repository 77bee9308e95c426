"""The command that measures the perplexity of a text."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import llm
from llm.data.tokenfile import write_token_file
from llm.tasks.evaluate import EvaluateConfig, main
from tests.conftest import TINY, random_model
from tests.tokenizers.test_bpe_tokenizer import TEXTS, trained


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = {**vars(TINY["llama"]), "vocab_size": 300}
    llm.save(random_model(llm.QwenConfig(**config)), tmp_path / "model", tokenizer=trained(vocab_size=300))
    return tmp_path / "model"


def measured(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    assert main(["--model", "model", "--precision", "fp32", "--device", "cpu", *argv]) == 0
    return {line[:16].strip(): float(line[16:]) for line in capsys.readouterr().out.splitlines()}


def test_the_perplexity_is_that_of_transformers_over_the_same_windows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    text = TEXTS[0] + TEXTS[1]
    Path("my.txt").write_text(text, encoding="utf-8")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"])
    total = 0.0
    for start in range(0, len(ids) - 1, 32):
        window = ids[start : start + 33]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    nats = total / (len(ids) - 1)
    found = measured(["--data", "my.txt"], capsys)
    assert found["nats per token"] == pytest.approx(nats, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats), rel=1e-5)
    first_bytes = len(llm.Tokenizer.load(folder).token_bytes[ids[0]])
    assert found["bits per byte"] == pytest.approx(total / math.log(2) / (len(text.encode()) - first_bytes), rel=1e-5)
    assert measured(["--data", "my.txt", "--batch-size", "3"], capsys) == pytest.approx(found, rel=1e-5)


def test_documents_end_with_the_end_of_text_but_for_the_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("two.txt").write_text("one\n<|endoftext|>\ntwo", encoding="utf-8")
    tokenizer = llm.Tokenizer.load(folder)
    ids = [*tokenizer.encode_document("one"), *tokenizer.encode("two")]
    write_token_file("two.bin", [np.array(ids)], vocab_size=300, fingerprint=tokenizer.fingerprint)
    assert measured(["--data", "two.txt"], capsys) == measured(["--data", "two.bin"], capsys)


def test_fewer_tokens_and_a_shorter_context_can_be_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.txt").write_text(TEXTS[0], encoding="utf-8")
    ids = llm.Tokenizer.load(folder).encode(TEXTS[0])
    Path("short.txt").write_text(llm.Tokenizer.load(folder).decode(ids[:17]), encoding="utf-8")
    found = measured(["--data", "my.txt", "--context", "16", "--limit-tokens", "10"], capsys)
    assert found == measured(["--data", "short.txt"], capsys)


@pytest.mark.parametrize(("argv", "message"), [
    (["--data", "a.txt"], "--model is missing; name a run folder"),
    (["--model", "model"], "--data is missing"),
    (["--model", "model", "--data", "a.txt", "--context", "33"], "--context 33 exceeds the model's context_length=32"),
    (["--model", "bare", "--data", "a.txt"], "--model bare has no tokenizer; give a token file"),
    (["--model", "model", "--data", "other.bin"], "was written with another tokenizer than that of --model model"),
])
def test_what_cannot_be_measured_says_why(argv: list[str], message: str, folder: Path) -> None:
    Path("a.txt").write_text("some text", encoding="utf-8")
    llm.save(random_model(TINY["llama"]), "bare")
    write_token_file("other.bin", [np.arange(9)], vocab_size=300, fingerprint="0" * 64)
    with pytest.raises(ValueError, match=message):
        main(argv)


@pytest.mark.parametrize("setting", ["context", "batch_size", "limit_tokens"])
def test_settings_must_be_positive(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=0 must be at least 1"):
        EvaluateConfig(**{setting: 0})
