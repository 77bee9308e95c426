"""Token files made from text of any size: the same bytes for any number of workers, and after any interruption."""

import json
from pathlib import Path

import numpy as np
import pytest

from llm.data import prepare as module
from llm.data.config import DataConfig
from llm.data.corpus import load_corpus
from llm.data.prepare import TextSource, prepare
from llm.tasks import tokenize
from llm.tokenizers.tokenizer import Tokenizer

SEPARATOR = "<|endoftext|>"
WORDS = ["the", "cat", "sat", "on", "a", "mat,", "and", "西游记", "was", "read", "aloud;", "42", "times!", "naïve",
         "café", "👍🏽"]


def text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def many(path: Path, count: int = 60) -> Path:
    documents = [text(seed, 30 + seed) for seed in range(count)]
    path.write_text(f"\n{SEPARATOR}\n".join([*documents, " \n ", documents[3]]), encoding="utf-8")
    return path


def single(path: Path) -> Path:
    path.write_text(text(1, 4000), encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 500 characters and pieces of 300 bytes, so that a small text has many of them."""
    monkeypatch.setattr(module, "BLOCK_CHARACTERS", 500)
    monkeypatch.setattr(module, "BLOCKS_BETWEEN_SYNCS", 2)
    monkeypatch.setattr("llm.data.records.BLOCK_BYTES", 300)


TOKENIZERS = {
    "bpe": Tokenizer.train([text(9, 3000)], 300), "byte": Tokenizer.byte_level(),
    "char": Tokenizer.character_level(" ".join(WORDS) + "\n"),
}


@pytest.mark.parametrize("make", [many, single])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_files_hold_what_tokenizing_in_memory_gives(tmp_path: Path, make: object, kind: str) -> None:
    path, tokenizer = make(tmp_path / "a.txt"), TOKENIZERS[kind]
    done = prepare(TextSource(path, SEPARATOR), tmp_path / "out", tokenizer)
    expected = load_corpus(DataConfig(data=str(path)), tokenizer=tokenizer)
    written = load_corpus(DataConfig(data=str(tmp_path / "out")))
    assert np.array_equal(written.train, expected.train) and np.array_equal(written.val, expected.val)
    assert written.tokenizer.fingerprint == tokenizer.fingerprint
    assert done.num_tokens == {"train": len(expected.train), "val": len(expected.val)}
    assert done.num_bytes <= path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("make", [many, single])
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, make: object) -> None:
    source = TextSource(make(tmp_path / "a.txt"), SEPARATOR)
    for workers in (1, 2, 3):
        prepare(source, tmp_path / str(workers), TOKENIZERS["bpe"], workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("make", [many, single])
@pytest.mark.parametrize("after", [1, 2, 3, 7, 12])
def test_an_interruption_changes_no_byte(
    tmp_path: Path, make: object, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TextSource(make(tmp_path / "a.txt"), SEPARATOR)
    prepare(source, tmp_path / "unbroken", TOKENIZERS["bpe"])

    calls = []
    original = module._encode_block

    def killed_after(job: object) -> object:
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return original(job)

    monkeypatch.setattr(module, "_encode_block", killed_after)
    with pytest.raises(Killed):
        prepare(source, tmp_path / "broken", TOKENIZERS["bpe"])
    assert not (tmp_path / "broken" / "train.bin").exists()
    resumed = []
    monkeypatch.setattr(module, "_encode_block", lambda job: resumed.append(1) or original(job))
    prepare(source, tmp_path / "broken", TOKENIZERS["bpe"])
    assert files(tmp_path / "unbroken") == files(tmp_path / "broken")
    all_blocks = len(list(module._blocks(source, *survey_and_split(source))))
    assert len(resumed) == all_blocks - after // 2 * 2   # only what was not yet safe is done again


def survey_and_split(source: TextSource) -> tuple:
    survey = module.take_survey(source)
    return (survey, *module._plan_split(survey, source, 0.1))


def test_progress_with_other_text_is_not_gone_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = TextSource(many(tmp_path / "a.txt"), SEPARATOR)
    out = tmp_path / "out"
    out.mkdir()
    (out / "progress.json").write_text(json.dumps({"key": "other", "blocks": 5, "counts": {"train": 9, "val": 9}}))
    prepare(source, out, TOKENIZERS["byte"])
    prepare(source, tmp_path / "plain", TOKENIZERS["byte"])
    assert files(out) == files(tmp_path / "plain")
    assert "other text or settings" in caplog.text


def test_the_files_of_another_text_are_not_overwritten(tmp_path: Path) -> None:
    source, out = TextSource(many(tmp_path / "a.txt"), SEPARATOR), tmp_path / "out"
    prepare(source, out, TOKENIZERS["byte"])
    before = files(out)
    prepare(source, out, TOKENIZERS["byte"])   # the same again is no harm
    for other, tokenizer in ((single(tmp_path / "b.txt"), "byte"), (source.path, "char")):
        with pytest.raises(ValueError, match="holds token files of other text, tokenizer or settings"):
            prepare(TextSource(other, SEPARATOR), out, TOKENIZERS[tokenizer])
    assert files(out) == before


def test_rows_with_another_text_column(tmp_path: Path) -> None:
    rows = [{"id": seed, "content": text(seed, 20)} for seed in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    source = TextSource(tmp_path / "a.jsonl", SEPARATOR, text_key="content")
    assert prepare(source, tmp_path / "out", TOKENIZERS["byte"]).num_documents == 8
    with pytest.raises(ValueError, match='line 1: no "text"'):
        prepare(TextSource(tmp_path / "a.jsonl", SEPARATOR), tmp_path / "other", TOKENIZERS["byte"])


def test_parquet_rows(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    texts = [text(seed, 20) for seed in range(8)]
    pandas.DataFrame({"text": texts}).to_parquet(tmp_path / "a.parquet")
    source = TextSource(tmp_path / "a.parquet", SEPARATOR)
    assert [piece.text for piece in source.pieces()] == texts
    with pytest.raises(ValueError, match="has no column 'content', only text"):
        list(TextSource(tmp_path / "a.parquet", SEPARATOR, text_key="content").pieces())


@pytest.mark.parametrize(("content", "message"), [("", "holds no text"), (" \n", "holds no text"), ("x", "too short")])
def test_too_little_text_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare(TextSource(tmp_path / "a.txt", SEPARATOR), tmp_path / "out", TOKENIZERS["byte"])


def test_the_command_shows_tokens_without_writing_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("low lower lowest", encoding="utf-8")
    arguments = ["--data", str(tmp_path / "a.txt"), "--tokenizer", "bpe:261"]
    assert tokenize.main([*arguments, "--show", "slow"]) == 0
    assert capsys.readouterr().out.splitlines() == ["    82  's'", "   257  'low'"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(ValueError, match="--out is missing"):
        tokenize.main(arguments)
