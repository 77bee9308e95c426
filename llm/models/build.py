"""From a configuration to a model."""

import torch

from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.models.gpt import GPT
from llm.models.qwen import Qwen

CLASSES: dict[str, type[Decoder]] = {"gpt": GPT, "qwen": Qwen}


def build_model(config: ModelConfig, *, dropout: float = 0.0, generator: torch.Generator | None = None) -> Decoder:
    """A freshly initialised model of the family that the configuration belongs to.

    Example:
        >>> from llm.models.config import GPTConfig
        >>> type(build_model(GPTConfig(vocab_size=4, num_layers=1, num_heads=1, dim=8))).__name__
        'GPT'
    """
    return CLASSES[config.family](config, dropout=dropout, generator=generator)   # type: ignore[call-arg]


def empty_model(config: ModelConfig, *, dropout: float = 0.0) -> Decoder:
    """The same without memory for its weights, for `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        return build_model(config, dropout=dropout)
