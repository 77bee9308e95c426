"""What a tokenizer puts around every text: Llama 3 a token before it, a classifier its end-of-text token behind it.

A classifier reads its verdict off the last token. If that is the same token behind every text, the model need not learn
it for each word that a text may end with. The habit is kept where transformers' AutoTokenizer looks for it, in the
`post_processor` of tokenizer.json, so that whoever opens the folder gets the ids that the model was trained on;
`Tokenizer.encode` itself gives the text's ids and nothing else, as ever.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from llm.tokenizers.formats import write_json
from llm.tokenizers.tokenizer import Tokenizer


class Ends(NamedTuple):
    """The ids around every text."""

    before: list[int]
    behind: list[int]

    def around(self, ids: list[int]) -> list[int]:
        """The ids of a text with those around it."""
        return self.before + ids + self.behind


def ends(tokenizer: Tokenizer) -> Ends:
    """What the tokenizer puts around every text.

    Example:
        >>> ends(Tokenizer.byte_level()), ends(with_end(Tokenizer.byte_level()))
        (Ends(before=[], behind=[]), Ends(before=[], behind=[256]))
    """
    processor = (tokenizer.vocabulary.source or {}).get("post_processor") or {}
    steps: list[dict[str, Any]] = processor["processors"] if processor.get("type") == "Sequence" else [processor]
    found = Ends([], [])
    for step in steps:   # each puts its own around what the steps before it made
        if step.get("type") == "TemplateProcessing":
            marks, ids_of = step["single"], step["special_tokens"]
            text = next(place for place, mark in enumerate(marks) if "Sequence" in mark)
            before, behind = ([token_id for mark in part for token_id in ids_of[mark["SpecialToken"]["id"]]["ids"]]
                              for part in (marks[:text], marks[text + 1 :]))
            found = Ends(before + found.before, found.behind + behind)
        elif step.get("type") in ("BertProcessing", "RobertaProcessing"):
            found = Ends([step["cls"][1], *found.before], [*found.behind, step["sep"][1]])
    return found


def with_end(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with its end-of-text token behind every text; what it puts before one stays.

    Raises:
        ValueError: if it has no end-of-text token, or is one that only the package `tokenizers` can run.
    """
    if tokenizer.eos_token is None or type(tokenizer) is not Tokenizer:
        raise ValueError("the tokenizer has no end-of-text token that can be put behind every text; choose "
                         "--no-end-of-text")
    end = tokenizer.eos_token
    before = [(tokenizer.readable(token_id), token_id) for token_id in ends(tokenizer).before]
    tokens = [*before, (end, tokenizer.eos_id)]
    marks = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in tokens]
    first, second = ([*marks[:-1], {"Sequence": {"id": name, "type_id": 0}}, marks[-1]] for name in "AB")
    processor = {"type": "TemplateProcessing", "single": first, "pair": first + second,
                 "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}
                                    for name, token_id in tokens}}
    vocabulary = replace(tokenizer.vocabulary, source={**write_json(tokenizer.vocabulary),
                                                         "post_processor": processor})
    return Tokenizer(vocabulary, **tokenizer.settings)
