"""A text of the model at each validation, in samples.txt: the eye sees what the loss does not."""

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from llm.checkpoint import unwrapped
from llm.generation import generate
from llm.models.decoder import Decoder
from llm.train.logger import naming
from llm.writing import start_ids, unused_ids

if TYPE_CHECKING:
    from llm.train.trainer import Trainer

log = logging.getLogger(__name__)


class SampleWriter:
    """An `after_eval` that appends one generated text to samples.txt.

    Args:
        prompt: what the text begins with; empty: the beginning of a document.
        num_tokens: how many tokens to write; fewer if the model's context ends.
        temperature: of the sampling; the seed is the step, so a resumed run writes the same.
    """

    def __init__(self, prompt: str, *, num_tokens: int, temperature: float):
        self.prompt = prompt
        self.num_tokens = num_tokens
        self.temperature = temperature

    def __call__(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        tokenizer, model = trainer.tokenizer, unwrapped(trainer.model)
        if tokenizer is None or trainer.folder is None or not isinstance(model, Decoder):
            return
        model.eval()
        start = start_ids(tokenizer, self.prompt)
        num_tokens = max(0, min(self.num_tokens, model.config.context_length - len(start)))
        # every new length of the text would be compiled again, which takes far longer than the text
        eagerly = torch.compiler.set_stance("force_eager") if trainer.config.compile else contextlib.nullcontext()
        try:
            with eagerly, trainer.world.autocast():
                [ids] = generate(model, [start], max_new_tokens=num_tokens, temperature=self.temperature,
                                 seed=row["step"], eos_id=tokenizer.eos_id, unused_ids=unused_ids(tokenizer, model))
            text = self.prompt + tokenizer.decode(token for token in ids if token != tokenizer.eos_id)
        except ValueError as error:   # such as logits that are NaN: a sample is no reason to stop
            text = f"(no text: {error})"
        path = trainer.folder / "samples.txt"
        with naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"=== step {row['step']}, {row['split']} loss {row['loss']:.4f}\n{text}\n\n")
