"""The report: what flatters is said, numbers that do not exist are no numbers, and text stays text."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llm
from llm.classification.config import ClassifyConfig
from llm.classification.fit import Fitted
from llm.classification.report import judge_all, write_report
from llm.classification.tables import table
from llm.data.labelled import Labelled
from llm.data.labelled_sets import Parts
from llm.models.classifier import Classifier

NOBODY = Labelled([], [], [])


def rows(labels: list[str]) -> Labelled:
    return Labelled([f"text {number} <b>" for number in range(len(labels))], labels, ["here"] * len(labels))


def report(folder: Path, parts: Parts, *, save_best: bool = False) -> str:
    """report.md of a classifier that believes in the second label everywhere."""
    decoder = llm.GPT(llm.GPTConfig(vocab_size=9, num_layers=1, num_heads=1, dim=8))
    beliefs = {name: np.tile([0.4, 0.6], (len(part), 1)) for name, part in parts._asdict().items()}
    fitted = Fitted(Classifier(decoder, labels=parts.names), llm.Tokenizer.byte_level(), beliefs,
                    {name: [3] * len(part) for name, part in parts._asdict().items()},
                    dict.fromkeys(parts._asdict(), 0), 77, 1.0, 1.0, None)
    config = ClassifyConfig()
    config = replace(config, train=replace(config.train, save_best=save_best))
    write_report(folder, config, parts, fitted, judge_all(config, parts, fitted, positive=1))
    return (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("val", "save_best", "said"), [
    (["a", "b"], True, "the checkpoint and the threshold were chosen on these very rows"),
    (["a", "b"], False, "the threshold was chosen on these very rows"),
    (["b", "b"], True, "the checkpoint was chosen on these very rows"), (["b", "b"], False, None),
])
def test_what_was_chosen_on_the_rows_that_judge_is_said(val: list[str], save_best: bool, said: str | None,
                                                        tmp_path: Path) -> None:
    text = report(tmp_path, Parts(rows(["a", "b"] * 3), rows(val), NOBODY), save_best=save_best)
    assert said is None or said in text
    assert ("flatter" in text) == (said is not None)


@pytest.mark.filterwarnings("error")
def test_scores_that_do_not_exist_are_null_in_the_results(tmp_path: Path) -> None:
    report(tmp_path, Parts(rows(["a", "b"] * 3), rows(["b", "b"]), rows(["b"] * 4)))

    def refuse(name: str) -> None:
        raise AssertionError(name)   # NaN and Infinity are no JSON

    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    ours = found["test"]["this classifier"]
    assert (ours["accuracy"], ours["roc_auc"], ours["per_class"]["a"]["recall"]) == (1.0, None, None)


def test_as_many_parameters_were_trained_as_the_fit_counted(tmp_path: Path) -> None:
    assert "of which 77 were trained" in report(tmp_path, Parts(rows(["a", "b"] * 3), rows(["a", "b"]), NOBODY))


def test_a_cell_is_one_line_of_plain_text() -> None:
    assert table(["x"], [["<b>1</b>\n2|3 & 4"]]).splitlines()[2] == r"| &lt;b>1&lt;/b> 2\|3 &amp; 4 |"
