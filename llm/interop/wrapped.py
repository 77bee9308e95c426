"""Any causal language model of transformers with the forward of ours, so that our Trainer and objectives train it.

Its own body computes the hidden states; head and losses are ours, which never make the logits of a batch as a whole.
Nothing here imports transformers: the model brings its methods along.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.losses import next_token_loss_sum, token_log_likelihood
from llm.models.decoder import Output
from llm.nn.norm import compute_dtype


class Wrapped(nn.Module):
    """A model of transformers; made by `wrap`. `model` is the model itself, with the same parameters."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @property
    def head_weight(self) -> Tensor:
        """(V, C), the output embedding."""
        return self.model.get_output_embeddings().weight

    @property
    def use_checkpointing(self) -> bool:
        """Whether each block is computed again in the backward, as in our models."""
        return self.model.is_gradient_checkpointing

    @use_checkpointing.setter
    def use_checkpointing(self, is_wanted: bool) -> None:
        if is_wanted:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def forward(
        self,
        input_ids: Tensor,
        *,
        targets: Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Output:
        """As `Decoder.forward`, without a cache: generation stays with transformers.

        Args:
            input_ids: (B, T) int64 in [0, V).
            targets: (B, T) int64, the token after each position, or IGNORE_INDEX.
            reduction: "sum" for `loss_sum`, "none" for `log_likelihood`.
            positions: (B, T) int64; default 0 .. T-1, restarting with each segment. transformers takes a restart for
                a new segment, so it needs no other mask.
            segment_ids: (B, T) int64, equal numbers side by side; tokens see only their own segment.

        Returns:
            `Output` with one of its first three fields set.
        """
        if positions is None and segment_ids is not None:
            positions = _positions_in_segments(segment_ids)
        hidden = self.model.base_model(input_ids=input_ids, position_ids=positions, use_cache=False)[0]   # (B, T, C)
        hidden = hidden.to(compute_dtype(hidden))
        if targets is None:
            return Output(logits=F.linear(hidden, self.head_weight))
        if reduction == "sum":
            return Output(loss_sum=next_token_loss_sum(hidden, self.head_weight, targets))
        return Output(log_likelihood=token_log_likelihood(hidden, self.head_weight, targets))

    def save_weights(self, folder: Path) -> None:
        """Write the model as its own library does: config.json and safetensors."""
        self.model.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        """Fill the model, in place, with what `save_weights` wrote."""
        saved = type(self.model).from_pretrained(folder)
        self.model.load_state_dict(saved.state_dict())


def wrap(model: Any) -> Wrapped:
    """Give a causal language model of transformers our forward.

    Args:
        model: such as AutoModelForCausalLM.from_pretrained returns; its parameters are shared, not copied. Losses of
            its own, such as that of a router, are not part of ours.

    Returns:
        A module that `Trainer` trains with `NextToken` and that saves itself as a Hugging Face folder.

    Raises:
        ValueError: if its logits are not hidden states times head (a bias, soft-capping, scaling), or if it lets
            segments of a packed row see each other.

    Example (with `transformers` installed)::

        model = wrap(AutoModelForCausalLM.from_pretrained("folder"))
        llm.Trainer(model, llm.NextToken(), train=..., config=...).fit()
    """
    wrapped = Wrapped(model)
    was_training = model.training
    model.eval()
    try:
        _check(wrapped)
    finally:
        model.train(was_training)
    return wrapped


@torch.no_grad()
def _check(wrapped: Wrapped) -> None:
    """Try both assumptions on a few tokens."""
    name = type(wrapped.model).__name__
    ids = torch.tensor([[0, 1, 2, 1, 0]], device=wrapped.head_weight.device) % len(wrapped.head_weight)
    theirs, ours = wrapped.model(input_ids=ids).logits.float(), wrapped(ids).logits
    assert ours is not None
    tolerance = 1e-4 if wrapped.head_weight.dtype == torch.float32 else 2e-2
    if not torch.allclose(ours.float(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise ValueError(f"the logits of {name} are not its hidden states times its head (a bias, soft-capping or "
                         "scaling comes in between); train it with its own loss instead")
    segments = torch.tensor([[0, 0, 1, 1, 1]], device=ids.device)
    packed = wrapped(ids, segment_ids=segments).logits
    alone = wrapped(ids[:, 2:]).logits
    assert packed is not None and alone is not None
    if not torch.allclose(packed[:, 2:].float(), alone.float(), rtol=tolerance,
                          atol=tolerance * float(alone.abs().max())):
        raise ValueError(f"{name} lets segments of a packed row see each other; set its attn_implementation to sdpa or "
                         "eager, or train it with its own loss")


def _positions_in_segments(segment_ids: Tensor) -> Tensor:
    """(B, T) int64: 0, 1, 2, ... from each change of the segment on."""
    place = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    is_first = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    return place - place.where(is_first, 0).cummax(dim=1).values
