"""The command: lists the sets, fetches one, and ends in one line where it cannot."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llm
from llm.data.registry import MODELS, REGISTRY, DataFile, DataSet, PackagedModel
from llm.interop import gguf
from llm.models.config import QwenConfig
from llm.tasks.download import main
from llm.tokenizers.tokenizer import Tokenizer
from tests.conftest import TINY, random_model
from tests.tokenizers.test_bpe_tokenizer import trained

TEXT = b"once upon a time"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = DataFile(name="text.txt", sha256=hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setitem(REGISTRY, "tiny", DataSet(summary="", kind="text", source="", licence="", train=file))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path


def test_without_a_name_the_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name, entry in REGISTRY.items():
        assert f"{name} ({entry.kind}, " in shown and entry.licence in shown and entry.source in shown
    assert "smollm2-135m-instruct (model, 98.4 MB)" in shown


def test_the_last_line_is_the_path(mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--mirror", str(mirror)]) == 0
    assert capsys.readouterr().out == "data/tiny/text.txt\n"
    assert Path("data/tiny/text.txt").read_bytes() == TEXT
    assert main(["--data", "tiny", "--folder", "elsewhere", "--mirror", "."]) == 0
    assert Path("elsewhere/tiny/text.txt").read_bytes() == TEXT


@pytest.mark.parametrize(("argv", "message"), [
    (["--data", "alpacca"], "error: 'alpacca' is no data set or model of the registry; did you mean 'alpaca'?\n"),
    (["smollm2"], "error: 'smollm2' is no data set or model of the registry; choose from tinyshakespeare, tinystories"),
    (["alpaca", "--data", "belle"], "error: alpaca and --data belle: give one name\n"),
    (["alpaca", "--mirror", "no/where"], "error: --mirror no/where: there is no such folder; name"),
])
def test_what_cannot_be_had_ends_in_one_line(tmp_path: Path, argv: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "llm.tasks.download", *argv], cwd=tmp_path, text=True,
                          capture_output=True, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_a_model_becomes_a_folder_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(trained(vocab_size=300).vocabulary, chat_template="{{ messages }}")
    config = {**vars(TINY["llama"]), "vocab_size": 300}
    model = random_model(QwenConfig(**config))
    gguf.save(model, tmp_path / "shelf" / "tiny.gguf", kind="q8_0", tokenizer=tokenizer)
    digest = hashlib.sha256((tmp_path / "shelf" / "tiny.gguf").read_bytes()).hexdigest()
    file = DataFile(name="tiny.gguf", sha256=digest)
    entry = PackagedModel(summary="", source="", licence="", requirement="", file=file)
    monkeypatch.setitem(MODELS, "tiny-model", entry)
    expected, _ = llm.load(tmp_path / "shelf" / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):   # the second time it is there
        assert main(["tiny-model", "--mirror", "shelf"]) == 0
        folder = Path("data/models/tiny-model")
        again, tokenizer_again = llm.load(folder)
        assert tokenizer_again is not None and tokenizer_again.fingerprint == tokenizer.fingerprint
        assert tokenizer_again.chat_template == "{{ messages }}"
        assert torch.equal(again.embed.weight, expected.embed.weight.bfloat16().float())
        assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"
        assert {path.name for path in folder.parent.iterdir()} == {"tiny-model", ".lock"}
        (tmp_path / "shelf" / "tiny.gguf").unlink(missing_ok=True)
