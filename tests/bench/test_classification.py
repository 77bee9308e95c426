"""Laws of `bench classify`: both programs read every text and compute the same; they differ in what they read along."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llm.bench import classification
from llm.bench.classification import (
    Rows,
    bench_classification,
    check_same_work,
    new_classifier,
    our_passes,
    peer_classifier,
    show_classification,
    their_passes,
)
from llm.bench.config import ClassifyBenchConfig
from llm.models.config import ModelConfig
from llm.runtime import start
from tests.conftest import TINY, random_ids

WORLD = start(device="cpu", precision="fp32")


def rows(count: int = 12) -> Rows:
    lengths = [2 + number * 7 % 11 for number in range(count)]
    return Rows([random_ids(length, vocab_size=60, seed=length).tolist() for length in lengths],
                [number % 2 for number in range(count)], pad_id=60, num_classes=2)


def config(**settings: object) -> ClassifyBenchConfig:
    whole = {"architecture": TINY["gpt"], "texts": 12, "turns": 2, "precision": ("fp32",), "tokenizer": "byte",
             **settings}
    return ClassifyBenchConfig(**whole)   # type: ignore[arg-type]


def test_both_programs_believe_the_same_of_the_same_texts(tiny_config: ModelConfig) -> None:
    texts, model = rows(), new_classifier(tiny_config, rows())
    theirs = peer_classifier(model)
    assert sum(p.numel() for p in theirs.parameters()) <= sum(p.numel() for p in model.parameters())   # no output head
    check_same_work(model, theirs, texts, 4, WORLD)
    believed = [passes(program, texts, 4, WORLD)["predict"]() for passes, program in
                ((our_passes, model), (their_passes, theirs))]
    assert np.allclose(*believed, atol=1e-5)   # type: ignore[arg-type]


def test_programs_that_do_not_compute_the_same_are_found_out() -> None:
    texts, model = rows(), new_classifier(TINY["gpt"], rows())
    theirs = peer_classifier(model)
    with torch.no_grad():
        theirs.score.weight.add_(torch.tensor([[9.0], [-9.0]]) * torch.randn(16))   # type: ignore[operator, union-attr]
    with pytest.raises(RuntimeError, match="the two programs do not compute the same"):
        check_same_work(model, theirs, texts, 4, WORLD)


def test_a_pass_of_training_takes_the_same_steps_in_both_where_the_batches_are_the_same() -> None:
    """One batch of all rows: the order within does not matter, so both must end at the same beliefs."""
    texts, model = rows(), new_classifier(TINY["gpt"], rows())
    theirs = peer_classifier(model)
    passes = [our_passes(model, texts, 12, WORLD), their_passes(theirs, texts, 12, WORLD)]
    for _ in range(3):
        for program in passes:
            program["train"]()
    ours, others = (program["predict"]() for program in passes)
    assert np.allclose(ours, others, atol=1e-4)   # type: ignore[arg-type]
    assert not np.allclose(ours, peer_free_beliefs(texts), atol=1e-3)


def peer_free_beliefs(texts: Rows) -> np.ndarray:
    return our_passes(new_classifier(TINY["gpt"], texts), texts, 12, WORLD)["predict"]()   # type: ignore[return-value]


def test_padding_is_what_is_read_beyond_the_texts() -> None:
    texts = Rows([[1] * 2, [1] * 8, [1] * 4, [1] * 6], [0, 1, 0, 1], pad_id=9, num_classes=2)
    assert [batch.tolist() for batch in texts.in_given_order(3)] == [[0, 1, 2], [3]]
    assert texts.padding(texts.in_given_order(2)) == pytest.approx(1 - 20 / 28)
    batch = texts.padded(np.array([0, 2]))
    assert batch["input_ids"].tolist() == [[1, 1, 9, 9], [1] * 4]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1] * 4]


def test_every_batch_size_is_measured_and_the_ratio_told() -> None:
    found = bench_classification(config(batch_size=(2, 4), against="transformers"))
    assert [(row["batch_size"], row["program"]) for row in found] == [
        (2, "ours"), (2, "transformers"), (4, "ours"), (4, "transformers")]
    assert all(row["train_texts_per_s"] > 0 and len(row["predict_s"]) == 2 for row in found)
    assert all(row["predict_padding"] <= other["predict_padding"] for row, other in zip(found[::2], found[1::2],
                                                                                        strict=True))
    head, *lines = show_classification(found).splitlines()
    assert "train times as fast" in head and "predict padding" in head
    assert [line.split()[0] for line in lines] == ["ours", "transformers"] * 2
    assert "times as fast" not in show_classification(bench_classification(config()))


def test_rows_of_a_file_are_read_and_too_few_are_refused(tmp_path: Path) -> None:
    words = ["tea", "sun", "dog", "car", "tree", "moon", "ball", "fish"]
    path = tmp_path / "rows.csv"
    path.write_text("Label,Text\n" + "".join(f"{label},{word} {label}y\n" for word in words
                                             for label in ("ham", "spam")), encoding="utf-8")
    texts, architecture = classification.prepare(config(data=str(path), texts=8))
    assert len(texts.ids) == 8 and architecture.vocab_size == 258 and texts.pad_id == 257
    with pytest.raises(ValueError, match=r"--texts 99: --data .*rows.csv has 10 training rows; ask for fewer"):
        classification.prepare(config(data=str(path), texts=99))


@pytest.mark.parametrize(("settings", "message"), [
    ({"texts": 0}, "texts=0 must be at least 1"), ({"turns": 0}, "turns=0 must be at least 1"),
    ({"batch_size": (0,)}, "batch_size=0 must be at least 1"), ({"precision": ()}, "precision is empty"),
])
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_nothing_left_to_measure_is_said() -> None:
    with pytest.raises(ValueError, match="nothing left to measure"):
        bench_classification(config(precision=("fp16",)))
