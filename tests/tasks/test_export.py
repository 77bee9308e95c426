"""The command that saves a model in another format."""

from pathlib import Path

import pytest
import torch

import llm
from llm.tasks.export import main
from tests.conftest import TINY, random_model
from tests.tokenizers.test_bpe_tokenizer import trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = trained(vocab_size=300)
    config = {**vars(TINY["llama"]), "vocab_size": 300, "dim": 32, "num_kv_heads": 2}
    llm.save(random_model(llm.QwenConfig(**config)), tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize(("kind", "dtype", "step"), [
    ("f32", torch.float32, 0), ("bf16", torch.bfloat16, 2**-8), ("f16", torch.float16, 2**-11)])
def test_a_folder_in_another_dtype_is_what_transformers_reads_and_we(
    kind: str, dtype: torch.dtype, step: float, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "out"
    assert main(["--model", str(folder), "--format", "hf", "--type", kind, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    (model, tokenizer), (before, tokenizer_before) = llm.load(out), llm.load(folder)
    assert theirs.dtype == dtype and tokenizer is not None and tokenizer_before is not None
    assert tokenizer.fingerprint == tokenizer_before.fingerprint
    weight = model.embed.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, theirs.model.embed_tokens.weight.float())
    assert ((weight - before.embed.weight).abs() <= step * before.embed.weight.abs() + 1e-7).all()


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_gguf_file_is_read_back_and_exported_again(kind: str, folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    main(["--model", str(folder), "--type", kind, "--out", str(first)])
    main(["--model", str(first), "--type", kind, "--out", str(second)])
    assert first.read_bytes() == second.read_bytes()   # rounding what is rounded changes nothing


@pytest.mark.parametrize(("argv", "message"), [
    (["--out", "a.gguf"], "--model is missing; name the model"),
    (["--model", "."], "--out is missing; name the file or folder"),
    (["--model", ".", "--out", "a"], "--out a: the name of such a file ends in .gguf"),
    (["--model", ".", "--out", "a.gguf", "--format", "hf", "--type", "q8_0"], "--type q8_0 is for --format gguf"),
    (["--model", ".", "--out", "there", "--format", "hf"], "--out there exists; choose another name, or delete it"),
])
def test_what_cannot_be_exported_says_why(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        main(argv)


def test_a_weight_too_large_for_the_dtype_is_named(tmp_path: Path) -> None:
    model = random_model(TINY["llama"])
    with torch.no_grad():
        model.final_norm.weight[0] = 1e5
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds a number that float16 cannot; choose bfloat16"):
        llm.save(model, tmp_path, dtype="float16")
    with pytest.raises(ValueError, match="dtype='int8' is not one of float32, bfloat16, float16"):
        llm.save(model, tmp_path, dtype="int8")
