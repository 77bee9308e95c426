"""A decoder that labels texts: its trunk, and a row of weights for each class beside the output head.

A text is judged by the hidden state of its last token, the only one that has read all of it. Where that token stands
follows from lengths that come with the batch, never from the ids: an id that pads a row may also stand in a text.

Next: `llm/objectives/classification.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm.losses import next_token_loss_sum
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.models.init import STD
from llm.models.routing import summarize
from llm.nn import RouterReport, Routing
from llm.nn.attention import take_places


class Judged(NamedTuple):
    """What `Classifier.forward` computed."""

    scores: Tensor                   # (B, classes); their softmax is the model's belief
    loss_sum: Tensor | None = None   # scalar float32, of predicting the tokens of the texts; only with targets
    aux_loss: Tensor | None = None   # only with experts: balance, one for each token of the texts,
    z_loss: Tensor | None = None     # and size of the router's scores; both scalar sums, `llm/losses.py`
    router: RouterReport | None = None   # and what the routers did


class Classifier(nn.Module):
    """Scores of each class for whole texts.

    Args:
        decoder: reads the texts. Its output head is used only where the texts' tokens are predicted too.
        labels: the names of the classes, in the order of the scores.
        pad_id: an id that no text holds, for whoever finds the end of a text by looking for it (transformers does).
        generator: source of the initial weights of the scores; default torch's global one.

    Raises:
        ValueError: for fewer than two labels, or two of the same name.

    Example:
        >>> import llm
        >>> decoder = llm.GPT(llm.GPTConfig(vocab_size=9, num_layers=1, num_heads=1, dim=8))
        >>> model = Classifier(decoder, labels=["ham", "spam"])
        >>> model(torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([2, 3])).scores.shape
        torch.Size([2, 2])
    """

    def __init__(self, decoder: Decoder, *, labels: Sequence[str], pad_id: int | None = None,
                 generator: torch.Generator | None = None):
        super().__init__()
        self.labels = tuple(labels)
        self.pad_id = pad_id
        if len(self.labels) < 2:
            raise ValueError(f"labels={list(labels)}: there is nothing to tell apart; give two or more")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels={list(labels)} holds a name twice; each class needs its own")
        self.decoder = decoder
        weight = decoder.embed.weight
        self.score = nn.Linear(decoder.config.dim, len(self.labels), bias=False, device=weight.device,
                               dtype=weight.dtype)
        if not weight.is_meta:
            nn.init.normal_(self.score.weight, std=STD, generator=generator)

    @property
    def config(self) -> ModelConfig:
        """The decoder's architecture."""
        return self.decoder.config

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's, which `torch.compile` takes one by one."""
        return self.decoder.blocks

    @property
    def use_checkpointing(self) -> bool:
        """Whether the decoder recomputes each block in the backward."""
        return self.decoder.use_checkpointing

    @use_checkpointing.setter
    def use_checkpointing(self, value: bool) -> None:
        self.decoder.use_checkpointing = value

    def forward(
        self, input_ids: Tensor, lengths: Tensor, *, targets: Tensor | None = None, is_left_padded: bool = False
    ) -> Judged:
        """Judge a batch of texts.

        Args:
            input_ids: (B, T) int64; what stands in the padding has no influence.
            lengths: (B,) int64 in [1, T], tokens of each text.
            targets: (B, T) int64, the token after each position, or IGNORE_INDEX; with them the loss of predicting
                the texts is computed too.
            is_left_padded: the padding stands before the texts, not behind them; not together with targets.

        Raises:
            ValueError: for a length that is not in [1, T], texts longer than the context, or targets of left-padded
                rows.
        """
        width = int(lengths.max())
        if not 1 <= int(lengths.min()) <= width <= input_ids.shape[1]:
            raise ValueError(f"lengths from {int(lengths.min())} to {width} do not fit rows of {input_ids.shape[1]} "
                             "tokens; each text needs at least one")
        if is_left_padded:   # move each text to the beginning of its row, where causal attention sees no padding
            if targets is not None:
                raise ValueError("targets together with is_left_padded; pad on the right in training")
            places = torch.arange(width, device=input_ids.device) + (input_ids.shape[1] - lengths)[:, None]   # (B, T)
            input_ids = input_ids.gather(1, places.clamp(max=input_ids.shape[1] - 1))
        if targets is None:
            hidden, routings = self.decoder.trunk(input_ids[:, :width], places=lengths - 1)   # (B, 1, C)
            scores = self.score(self.decoder.final_norm(hidden[:, 0]))
            return Judged(scores, **self._experts(routings, lengths, width))
        hidden, routings = self.decoder.trunk(input_ids)
        hidden = self.decoder.final_norm(hidden)
        last = take_places(hidden, lengths - 1)[:, 0]   # (B, C)
        return Judged(self.score(last), next_token_loss_sum(hidden, self.decoder.head_weight, targets),
                      **self._experts(routings, lengths, input_ids.shape[1]))

    @staticmethod
    def _experts(routings: Sequence[Routing], lengths: Tensor, width: int) -> dict[str, Any]:
        """What experts add to the answer: their losses over all tokens of the texts, and none of the padding."""
        if not routings:
            return {}
        return summarize(routings, torch.arange(width, device=lengths.device) < lengths[:, None])   # (B, T)
