"""Laws of the classification objective: sums that add up, weights that act as copies would, smoothing as in torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.data.datasets import LabelledTexts
from llm.models.classifier import Classifier
from llm.objectives.classification import Classification
from tests.conftest import TINY, random_ids, random_model


def texts(count: int = 12, *, has_targets: bool = True) -> LabelledTexts:
    rows = [random_ids(3 + number % 7, seed=number).tolist() for number in range(count)]
    return LabelledTexts(rows, [number % 3 for number in range(count)], has_targets=has_targets)


def model(family: str = "gpt") -> Classifier:
    return Classifier(random_model(TINY[family]), labels="abc", generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("family", "objective"), [
    ("gpt", Classification()),
    ("gpt", Classification([1.0, 3.0, 0.5], label_smoothing=0.2, token_weight=0.3)),
    ("gpt", Classification([1.0, 3.0, 0.5], teacher=lambda batch: (batch["lengths"][:, None] + torch.arange(3.0))
                           / 30)),   # no probabilities, but sums add up for any numbers
    ("qwen3_moe", Classification(balance=0.2, router_z=0.1)),
    ("qwen2_moe", Classification([1.0, 3.0, 0.5], token_weight=0.3, balance=0.2))])
def test_a_batch_of_12_is_4_micro_batches_of_3(family: str, objective: Classification) -> None:
    """The sums and weights of the parts add up to those of the whole, and so do the gradients."""
    gradients, totals = [], []
    for parts in ([range(12)], [range(0, 3), range(3, 6), range(6, 9), range(9, 12)]):
        judge = model(family).train()
        batches = [texts().batch(np.array(part), seed=0, epoch=0) for part in parts]
        loss_sum = torch.stack([objective(judge, batch).loss_sum for batch in batches]).sum()
        torch.autograd.backward(loss_sum)
        totals.append(torch.tensor([loss_sum.item(), sum(map(objective.weight, batches))]))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in judge.parameters()]))   # type: ignore
    assert torch.allclose(*totals, rtol=1e-5)
    assert torch.allclose(*gradients, atol=1e-4)   # sums of some 80 terms of size 1


def test_a_class_of_weight_2_counts_as_if_its_texts_were_there_twice() -> None:
    judge, data = model().eval(), texts()
    ids = np.arange(12)
    doubled = data.batch(np.sort([*ids, *ids[data.labels == 1]]), seed=0, epoch=0)
    weighted, plain = Classification([1.0, 2.0, 1.0]), Classification()
    batch = data.batch(ids, seed=0, epoch=0)
    assert weighted.weight(batch) == plain.weight(doubled) == 16
    assert torch.allclose(weighted(judge, batch).loss_sum, plain(judge, doubled).loss_sum, rtol=1e-5)


def test_smoothing_and_language_act_in_training_only() -> None:
    judge, batch = model(), texts().batch(np.arange(6), seed=0, epoch=0)
    objective = Classification(label_smoothing=0.1, token_weight=0.5)
    scores = judge(batch["input_ids"], batch["lengths"]).scores
    language = judge.decoder(batch["input_ids"], targets=batch["targets"]).loss_sum
    smooth = F.cross_entropy(scores, batch["labels"], label_smoothing=0.1, reduction="sum")
    assert torch.allclose(objective(judge.train(), batch).loss_sum, smooth + 0.5 * language, rtol=1e-5)
    plain = F.cross_entropy(scores, batch["labels"], reduction="sum")
    assert torch.allclose(objective(judge.eval(), batch).loss_sum, plain, rtol=1e-5)


def test_who_learns_from_a_teacher_that_says_the_labels_learns_from_the_labels() -> None:
    judge, batch = model().train(), texts().batch(np.arange(6), seed=0, epoch=0)
    for weights in (None, [1.0, 2.0, 0.5]):
        taught = Classification(weights, label_smoothing=0.1, teacher=lambda told: F.one_hot(told["labels"], 3).float())
        assert torch.allclose(taught(judge, batch).loss_sum, Classification(weights)(judge, batch).loss_sum, rtol=1e-5)


def test_what_a_teacher_believes_counts_in_training_only() -> None:
    judge, batch = model(), texts().batch(np.arange(6), seed=0, epoch=0)
    belief = torch.tensor([0.7, 0.2, 0.1])
    objective = Classification(teacher=lambda batch: belief.expand(6, 3))
    logs = judge(batch["input_ids"], batch["lengths"]).scores.log_softmax(-1)
    assert torch.allclose(objective(judge.train(), batch).loss_sum, -(logs @ belief).sum(), rtol=1e-5)
    assert torch.equal(objective(judge.eval(), batch).loss_sum, Classification()(judge, batch).loss_sum)


def test_accuracy_beside_a_teacher_is_how_often_both_choose_the_same() -> None:
    judge, batch = model().train(), texts().batch(np.arange(6), seed=0, epoch=0)
    chosen = judge(batch["input_ids"], batch["lengths"]).scores.argmax(-1)
    beliefs = F.one_hot(torch.where(torch.arange(6) < 4, chosen, (chosen + 1) % 3), 3).float()
    hits, count = Classification(teacher=lambda batch: beliefs)(judge, batch).metrics["accuracy"]
    assert (float(hits), count) == (4.0, 6.0)


def test_the_losses_of_routers_act_in_training_only_and_by_their_weights() -> None:
    judge, batch = model("qwen3_moe"), texts().batch(np.arange(6), seed=0, epoch=0)
    judged = judge(batch["input_ids"], batch["lengths"])
    plain = F.cross_entropy(judged.scores, batch["labels"], reduction="sum")
    objective = Classification(balance=0.5, router_z=0.25)
    expected = plain + 0.5 * judged.aux_loss + 0.25 * judged.z_loss
    found = objective(judge.train(), batch)
    assert torch.allclose(found.loss_sum, expected)
    assert {"accuracy", "balance", "router_entropy.1", "dead_experts", "peak_load.0"} <= found.metrics.keys()
    assert torch.allclose(objective(judge.eval(), batch).loss_sum, plain)


def test_a_batch_of_8_is_2_rows_of_4_steps_for_the_trainer_with_experts() -> None:
    """Of ragged texts, through clipping and AdamW: 8 x 1 and 4 x 2 end at the same weights to rounding."""
    import llm

    ends = []
    for accumulate in (1, 2, 4):
        judge = model("qwen3_moe")
        config = llm.TrainConfig(steps=3, batch_size=8, accumulate=accumulate, device="cpu", precision="fp32")
        trainer = llm.Trainer(judge, Classification(token_weight=0.1, balance=0.5), train=texts(24), config=config)
        trainer.fit()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in judge.parameters()]))
    assert torch.allclose(ends[0], ends[1], atol=1e-5) and torch.allclose(ends[0], ends[2], atol=1e-5)


def test_accuracy_counts_texts() -> None:
    judge, batch = model().eval(), texts(has_targets=False).batch(np.arange(7), seed=0, epoch=0)
    right, count = Classification([0.0, 1.0, 5.0])(judge, batch).metrics["accuracy"]
    assert (float(right), count) == (float((judge(batch["input_ids"], batch["lengths"]).scores.argmax(-1)
                                            == batch["labels"]).sum()), 7.0)


@pytest.mark.parametrize(("settings", "message"), [
    ({"class_weights": [1.0, -1.0]}, "must not be negative"),
    ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must lie in \[0, 1\)"),
    ({"token_weight": float("nan")}, "token_weight=nan must be at least 0"),
    ({"balance": -0.1}, "balance=-0.1 must be at least 0"),
    ({"router_z": -1.0}, "router_z=-1.0 must be at least 0"),
])
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classification(**settings)


def test_labelled_texts_pad_on_the_right_and_never_predict_beyond_a_text() -> None:
    batch = LabelledTexts([[5, 6, 7], [8]], [0, 1], has_targets=True).batch(np.arange(2), seed=0, epoch=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["targets"].tolist() == [[6, 7, -100], [-100] * 3]
    wrong: list[tuple[list[list[int]], list[int], str]] = [
        ([], [], "no texts"), ([[1]], [], "1 texts and 0 labels"), ([[1], []], [0, 1], "text 1 has no token")]
    for rows, labels, message in wrong:
        with pytest.raises(ValueError, match=message):
            LabelledTexts(rows, labels)
