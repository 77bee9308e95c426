"""Tell classes apart: cross entropy over whole texts, with the usual remedies for rare classes and for certainty.

What a text is to be taken for is said by its label, or by a teacher that has learned the labels before.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.losses import IGNORE_INDEX
from llm.objectives.base import Result
from llm.objectives.routers import Metrics, router_terms


class Classification:
    """-log p(label), summed over the texts, each weighing what its class weighs.

    Args:
        class_weights: one for each class, default 1 each; a class with twice the weight counts as if its texts were
            there twice.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1). Like dropout it acts in
            training mode only, so that validation losses compare.
        token_weight: weight of the loss of predicting a token of the texts, beside a text's 1; in training mode only.
            It keeps a small model from learning the labels by heart; batches must then carry `targets`.
        balance: weight of the loss that keeps experts equally busy, for a token of the texts, beside a text's 1; in
            training mode only. Its value is `balance` in the metrics, 1 at best.
        router_z: weight of the loss that keeps the routers' scores small, the same way.
        teacher: gives of a batch the (B, classes) probabilities from which the model learns in training mode, instead
            of from the labels; smoothing has no effect then, and `accuracy` is how often both choose the same class.
            See `llm/classification/teachers.py`.

    Raises:
        ValueError: for a negative weight, or smoothing outside its range.

    Paper: smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7. Language loss beside it: Radford et al. 2018,
        "Improving Language Understanding by Generative Pre-Training", eq. 5. Teacher: Hinton et al. 2015,
        arXiv:1503.02531, section 2.

    Example:
        >>> import llm
        >>> from llm.models.classifier import Classifier
        >>> decoder = llm.GPT(llm.GPTConfig(vocab_size=9, num_layers=1, num_heads=1, dim=8))
        >>> batch = {"input_ids": torch.tensor([[1, 2]]), "lengths": torch.tensor([2]), "labels": torch.tensor([1])}
        >>> objective = Classification(class_weights=[1.0, 3.0])
        >>> objective.weight(batch), objective(Classifier(decoder, labels="ab"), batch).loss_sum.shape
        (3.0, torch.Size([]))
    """

    def __init__(self, class_weights: Sequence[float] | None = None, *, label_smoothing: float = 0.0,
                 token_weight: float = 0.0, balance: float = 0.0, router_z: float = 0.0,
                 teacher: Callable[[dict[str, Tensor]], Tensor] | None = None):
        if class_weights is not None and not all(weight >= 0 for weight in class_weights):
            raise ValueError(f"class_weights={list(class_weights)} must not be negative")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
        for name, value in (("token_weight", token_weight), ("balance", balance), ("router_z", router_z)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must be at least 0")
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.label_smoothing = label_smoothing
        self.token_weight = token_weight
        self.balance = balance
        self.router_z = router_z
        self.teacher = teacher

    def weight(self, batch: dict[str, Tensor]) -> float:
        if self.class_weights is None:
            return float(len(batch["labels"]))
        return float(self.class_weights[batch["labels"]].sum())

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Result:
        labels, is_language_wanted = batch["labels"], model.training and self.token_weight > 0
        judged = model(batch["input_ids"], batch["lengths"],
                       targets=batch["targets"] if is_language_wanted else None)
        scores = judged.scores.float()
        weights = None if self.class_weights is None else self.class_weights.to(scores.device)
        if model.training and self.teacher is not None:
            belief = self.teacher(batch)
            losses = F.cross_entropy(scores, belief, reduction="none")   # (B,)
            loss_sum = (losses if weights is None else losses * weights[labels]).sum()
            labels = belief.argmax(-1)   # what accuracy goes by
        else:
            loss_sum = F.cross_entropy(scores, labels, weight=weights, reduction="sum",
                                       label_smoothing=self.label_smoothing if model.training else 0.0)
        count = float(len(labels))
        metrics: Metrics = {"accuracy": ((scores.argmax(-1) == labels).sum().float(), count)}
        if is_language_wanted:
            metrics["language"] = judged.loss_sum.detach(), float((batch["targets"] != IGNORE_INDEX).sum())
            loss_sum = loss_sum + self.token_weight * judged.loss_sum   # a sum too: exact however a step is cut
        added, health = router_terms(judged, balance=self.balance, router_z=self.router_z, is_training=model.training)
        return Result(loss_sum + added, metrics | health)
