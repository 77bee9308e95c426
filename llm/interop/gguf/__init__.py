"""GGUF, the one-file format of llama.cpp: models with their tokenizers and chat templates, read and written.

    >>> import llm
    >>> model, tokenizer = llm.load("model.gguf")                                   # doctest: +SKIP

Read `container.py` (the file), `blocks.py` (its number formats), `architectures.py` (models), `vocabulary.py`
(tokenizers).
"""

import logging
from pathlib import Path

import numpy as np
import torch

from llm.interop.gguf import architectures, container, vocabulary
from llm.interop.gguf.blocks import FORMATS, WRITABLE
from llm.interop.gguf.container import GGUFFile
from llm.models.build import empty_model
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.nn.lora import whole_state
from llm.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}   # what most of a file's tensors are, by llama.cpp's numbers


def load(path: str | Path, *, dropout: float = 0.0) -> tuple[Decoder, Tokenizer | None]:
    """The model of a file, in float32 and on the CPU, and its tokenizer if it has one.

    Raises:
        ValueError: if the file is damaged or of an unsupported kind.
    """
    file = GGUFFile(path)
    config = architectures.read_config(file)
    tokenizer = vocabulary.read_tokenizer(file)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise file.error(f"its tokenizer has {tokenizer.vocab_size} ids, and its model {config.vocab_size}; "
                         "it is damaged")
    model = empty_model(config, dropout=dropout)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = architectures.read_state(file, config, shapes)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()}, assign=True)
    return model, tokenizer


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of the model in a file."""
    return architectures.read_config(GGUFFile(path))


def save(model: Decoder, path: str | Path, *, kind: str, tokenizer: Tokenizer | None = None) -> None:
    """Write a model as a GGUF file that llama.cpp opens and `load` reads back.

    Norms, biases, routers and positions stay in float32, and so do they in llama.cpp's own files; a matrix whose rows
    are not made of whole blocks is written in float16.

    Args:
        model: any of our families.
        path: the file; one that is there is replaced.
        kind: of the matrices: "f32", "f16", "bf16" or "q8_0".
        tokenizer: written along, with its chat template.

    Raises:
        ValueError: for another kind, or if a weight cannot be written in it, or for adapters that are not merged.
    """
    if kind not in WRITABLE:
        raise ValueError(f"type {kind!r} cannot be written; choose from {', '.join(WRITABLE)}")
    state, config = whole_state(model), model.config
    makers = architectures.tensors_to_write(config, {name: tuple(tensor.shape) for name, tensor in state.items()})
    table = {}
    for name, (shape, _) in makers.items():
        chosen = FORMATS[WRITABLE[kind]]
        if len(shape) == 1 or name == "position_embd.weight" or name.endswith(".ffn_gate_inp.weight"):
            chosen = FORMATS[WRITABLE["f32"]]
        elif shape[-1] % chosen.block:
            log.warning("%s: rows of %d are not made of blocks of %d; written in f16", name, shape[-1], chosen.block)
            chosen = FORMATS[WRITABLE["f16"]]
        table[name] = (shape, chosen)
    metadata = {**architectures.config_values(config), "general.type": "model", "general.file_type": FILE_TYPES[kind]}
    if kind == "q8_0":
        metadata["general.quantization_version"] = 2
    if tokenizer is not None:
        metadata |= vocabulary.tokenizer_values(tokenizer, config.vocab_size)

    def produce(name: str) -> np.ndarray:
        return makers[name][1](lambda ours: state[ours].detach().float().cpu().numpy())

    container.write(path, metadata, table, produce)
