"""A run's checkpoint is what transformers opens: the same ids and, in fp32, the same greedy text."""

from pathlib import Path

import pytest
import torch

import llm
from llm.tasks import pretrain

transformers = pytest.importorskip("transformers")

TEXT = "The quick brown fox jumps over the lazy dog.\n猴王出世, 12 + 30 = 42。\n" * 10


@pytest.mark.parametrize(("model", "tokenizer"), [
    ("gpt-tiny", "byte"), ("qwen-tiny", "char"), ("qwen-tiny", "bpe:290"),
    *[pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("gpt-tiny", "char"), ("gpt-tiny", "bpe:290"), ("qwen-tiny", "byte"))],
])
def test_a_checkpoint_writes_the_same_text_in_transformers(
    model: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    sizes = "--num-layers 1 --num-heads 2 --dim 16 --context 48 --batch-size 8 --steps 20 --lr 1e-2"
    where = "--precision fp32 --device cpu --threads 1 --out run"
    assert pretrain.main(["--model", model, "--data", "a.txt", "--tokenizer", tokenizer, *sizes.split(),
                          *where.split()]) == 0
    folder = Path("run/checkpoints/step-00000020")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    ours, own = llm.load(folder)
    assert own is not None
    for text in ("The quick", "猴王", "dog.\n猴", "42 = 12 + 30", TEXT[5:40]):
        ids = auto(text)["input_ids"]
        assert own.encode(text) == ids and auto.decode(ids) == text
        expected = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12,
                                   do_sample=False)[0, len(ids):].tolist()
        [row] = llm.generate(ours, [ids], max_new_tokens=12, temperature=0.0, eos_id=own.eos_id)
        assert row == expected and own.decode(row) == auto.decode(row)
