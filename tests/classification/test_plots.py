"""The picture of a classifier hides nothing of it."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from llm.classification.judge import Judgement
from llm.classification.plots import _roc, draw


@pytest.mark.parametrize(("skill", "num_corners"), [(4.0, 1), (0.5, 0)])
def test_the_corner_is_shown_only_where_no_curve_runs_behind_it(skill: float, num_corners: int) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 400)
    scores = 1 / (1 + np.exp(-rng.normal(skill * (truth - 0.5))))
    judgement = Judgement(truth, np.stack((1 - scores, scores), axis=1), ["ham", "spam"], positive=1)
    axes = Figure().subplots()
    _roc(axes, judgement, {"another": judgement})
    assert len(axes.child_axes) == num_corners


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", [["a $^$ b", "$x"], ["tab\there", "好"], ["line\nbreak", "<b>"]])
@pytest.mark.parametrize("truth", [[0, 1, 1, 0], [1, 1, 1, 1]])
def test_no_name_and_no_lack_of_a_class_keeps_the_picture_from_being_drawn(names: list[str], truth: list[int],
                                                                          tmp_path: Path) -> None:
    judgement = Judgement(np.array(truth), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]), names, 1)
    draw(tmp_path / "a.png", judgement, {"another": judgement}, title="test rows")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
