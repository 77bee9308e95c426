"""Language models from the tokenizer to the aligned chat model, hand-written in plain PyTorch.

    >>> import llm
    >>> model = llm.GPT(llm.GPTConfig(vocab_size=65, context_length=64, num_layers=4, num_heads=4, dim=128))

The public names are imported on first use, so that `import llm` costs nothing. Where to read: `llm/nn` (primitives),
`llm/models` (whole models), `llm/data`, `llm/train` (the loop), `llm/tasks` (commands).
"""

import importlib
from typing import Any

_HOMES = {
    "Attention": "llm.nn",
    "Examples": "llm.data.datasets",
    "GPT": "llm.models.gpt",
    "GPTConfig": "llm.models.config",
    "IGNORE_INDEX": "llm.losses",
    "NextToken": "llm.objectives.language",
    "Qwen": "llm.models.qwen",
    "QwenConfig": "llm.models.config",
    "Result": "llm.objectives.base",
    "TokenWindows": "llm.data.datasets",
    "Tokenizer": "llm.tokenizers.tokenizer",
    "TrainConfig": "llm.train.config",
    "Trainer": "llm.train.trainer",
    "generate": "llm.generation",
    "load": "llm.checkpoint",
    "save": "llm.checkpoint",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "nn":   # `llm.nn.Attention(...)` after a bare `import llm`
        return importlib.import_module("llm.nn")
    if name not in _HOMES:
        raise AttributeError(f"module 'llm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)   # a submodule of the same name would hide it


def __dir__() -> list[str]:
    return __all__
