"""Settings of a run that cannot work, or would do nothing, are refused."""

import pytest

import llm


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"steps": 1, "epochs": 1}, "give one of them"), ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"accumulate": 32}, "accumulate=32 exceeds batch_size=16"), ({"lr": 0.0}, "lr=0.0 must be above 0"),
    ({"muon_lr": 0.1}, "muon_lr=0.1 has no effect with optimizer=adamw"),
    ({"decay_fraction": 0.5}, "decay_fraction=0.5 is for schedule=wsd"),
    ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"), ({"seed": 2**63}, "must be below"),
    ({"patience": 3, "save_best": False}, "would keep weights that have become worse"),
    ({"lr": float("nan"), "clip": -1.0}, "clip=-1.0 must be at least 0; lr=nan"),   # all at once
])
def test_an_impossible_setting_is_named_with_its_rule(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        llm.TrainConfig(**changes)


def test_settings_fit_together_when_they_have_an_effect() -> None:
    llm.TrainConfig(optimizer="muon", muon_lr=0.1, schedule="wsd", decay_fraction=0.5)
