"""The picture of a classifier hides nothing of it."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from llm.classification.judge import Judgement
from llm.classification.plots import _roc


@pytest.mark.parametrize(("skill", "num_corners"), [(4.0, 1), (0.5, 0)])
def test_the_corner_is_shown_only_where_no_curve_runs_behind_it(skill: float, num_corners: int) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 400)
    scores = 1 / (1 + np.exp(-rng.normal(skill * (truth - 0.5))))
    judgement = Judgement(truth, np.stack((1 - scores, scores), axis=1), ["ham", "spam"], positive=1)
    axes = Figure().subplots()
    _roc(axes, judgement, {"another": judgement})
    assert len(axes.child_axes) == num_corners
