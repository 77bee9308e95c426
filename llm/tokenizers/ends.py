"""Tokenizers that put their end-of-text token behind every text.

A classifier reads its verdict off the last token. If that is the same token behind every text, the model need not learn
it for each word that a text may end with. The habit is kept where transformers' AutoTokenizer looks for it, in the
`post_processor` of tokenizer.json, so that whoever opens the folder gets the ids that the model was trained on;
`Tokenizer.encode` itself gives the text's ids and nothing else, as ever.
"""

from dataclasses import replace
from typing import Any

from llm.tokenizers.formats import write_json
from llm.tokenizers.tokenizer import Tokenizer


def added_end(tokenizer: Tokenizer) -> int | None:
    """The id that stands behind every text, None if there is none.

    Example:
        >>> added_end(Tokenizer.byte_level()), added_end(with_end(Tokenizer.byte_level()))
        (None, 256)
    """
    if tokenizer.eos_token is None:
        return None
    processor = (tokenizer.vocabulary.source or {}).get("post_processor") or {}
    steps: list[dict[str, Any]] = processor.get("processors", [processor])
    lasts = [step["single"][-1] for step in steps if step.get("type") == "TemplateProcessing" and step.get("single")]
    is_added = any(last.get("SpecialToken", {}).get("id") == tokenizer.eos_token for last in lasts)
    return tokenizer.eos_id if is_added else None


def with_end(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with its end-of-text token behind every text.

    Raises:
        ValueError: if it has no end-of-text token, or is one that only the package `tokenizers` can run.
    """
    if tokenizer.eos_token is None or type(tokenizer) is not Tokenizer:
        raise ValueError("the tokenizer has no end-of-text token that can be put behind every text; choose "
                         "--no-end-of-text")
    end = tokenizer.eos_token
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    stop = {"SpecialToken": {"id": end, "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [first, stop], "pair": [first, stop, second, stop],
                 "special_tokens": {end: {"id": end, "ids": [tokenizer.eos_id], "tokens": [end]}}}
    vocabulary = replace(tokenizer.vocabulary, source={**write_json(tokenizer.vocabulary),
                                                         "post_processor": processor})
    return Tokenizer(vocabulary, **tokenizer.settings)
