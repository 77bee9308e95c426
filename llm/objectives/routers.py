"""What the routers of a mixture of experts add to a loss, whatever the objective, and what is told of them."""

from typing import Any

from torch import Tensor

from llm.nn import RouterReport

Metrics = dict[str, tuple[Tensor | float, float]]


def router_terms(output: Any, *, balance: float, router_z: float, is_training: bool) -> tuple[Tensor | float, Metrics]:
    """The routers' losses of one micro-batch, and their health as metrics.

    Args:
        output: of the model; one without a `router` that is not None has no experts and adds nothing.
        balance: weight of its `aux_loss`, which keeps experts equally busy.
        router_z: weight of its `z_loss`, which keeps the routers' scores small.
        is_training: whether the losses act; like dropout they do so in training only, so that validation losses
            compare.

    Returns:
        What the loss sum grows by, and metrics: `balance`, 1 at best, and for each layer the entropy of its router; in
        training also the load of the busiest expert and how many get nothing. These two depend on how many tokens are
        looked at together, so they are for watching the training, not for comparing models.
    """
    router: RouterReport | None = getattr(output, "router", None)   # a foreign module may return less
    if router is None:
        return 0.0, {}
    tokens = float(router.tokens)
    metrics: Metrics = {"balance": (output.aux_loss.detach(), tokens)}
    metrics |= {f"router_entropy.{layer}": (entropy, tokens) for layer, entropy in enumerate(router.entropy.tolist())}
    if not is_training:
        return 0.0, metrics
    return balance * output.aux_loss + router_z * output.z_loss, metrics | _load(router)


def _load(router: RouterReport) -> Metrics:
    dead, peak = router.dead.tolist(), router.peak.tolist()
    return {"dead_experts": (float(sum(dead)), 1.0)} | {
        f"dead_experts.{layer}": (float(number), 1.0) for layer, number in enumerate(dead)} | {
        f"peak_load.{layer}": (number, 1.0) for layer, number in enumerate(peak)}
