r"""Where a byte pair may never form: the regular expressions that cut text into words before BPE.

A tokenizer is half merges, half pattern: the same merges under another pattern give other tokens. This table holds the
patterns that matter in practice, each under the name that the rest of the library uses. Each is written once, so that
three engines read it alike: tiktoken's (encoding), the `regex` package (training; tiktoken depends on it, so it is
always there) and the Oniguruma of `tokenizers`. Python's own `re` has no `\p{L}`, a letter of any script.

The possessive forms (`++`) come from tiktoken (`tiktoken_ext/openai_public.py`): they do not backtrack into a run of a
million spaces. `{1,3}+` is avoided: possessive to two engines, it is a loop to the third. The engines know different
editions of Unicode: a character assigned last year may be a letter to one and a symbol to another.

Left out: how a pattern is spelled in a `tokenizer.json` (formats.py). Read next: bpe.py.
"""

from collections.abc import Iterator
from pathlib import Path

import regex

# A contraction ('s, 'll), a word with the space before it, a number with the space before it, anything else that is not
# space, and at last the space itself. The final space of a run is left for the word after it: `\s+(?!\S)`.
_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# As GPT-2, but numbers in groups of at most three digits, contractions in either case, newlines kept with the
# punctuation before them, and any one symbol (not only a space) taken into the word after it. Also Llama 3's.
_CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s*[\r\n]|\s++$|\s+(?!\S)|\s"""
)

# As cl100k with every digit alone (Qwen 2 to 3).
_QWEN2 = _CL100K.replace(r"\p{N}{1,3}", r"\p{N}")

# As cl100k, and a word also ends where lower case turns to upper case; contractions stay with their word.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"""[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)

# Mistral's Tekken: as o200k without contractions, and every digit alone.
_TEKKEN = _O200K.replace(_CONTRACTION, "").replace(r"\p{N}{1,3}", r"\p{N}")

# SmolLM2: each digit alone, and only then GPT-2's pattern on what stands between the digits. So a digit is an end of
# text to the rest, and the space before it keeps its last character: hence `\s++(?=\p{N})` before `\s+(?!\S)`.
_DIGITS = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s++(?=\p{N})|\s+(?!\S)|\s"""
)

# What llama.cpp does where a GGUF file does not say what its model was trained with: punctuation by itself, GPT-2's
# pattern between it, numbers without the space before them and from the left in groups of three ASCII digits.
_SIGN = r"[\p{P}$+<=>^~|]"
_LLAMA_CPP = (
    rf"""{_SIGN}++| ?\p{{L}}++|[0-9]{{3}}|(?:(?![0-9]{{3}})\p{{N}})++| ?(?:(?!{_SIGN})[^\s\p{{L}}\p{{N}}])++"""
    rf"""|\s++$|\s++(?={_SIGN})|\s+(?!\S)|\s"""
)

PATTERNS: dict[str, str] = {
    "gpt2": _GPT2,
    "cl100k": _CL100K,
    "o200k": _O200K,
    "qwen2": _QWEN2,
    "tekken": _TEKKEN,
    "digits": _DIGITS,
    "llamacpp": _LLAMA_CPP,
}

# A place where every pattern above ends one word and starts the next, whatever stands around it: after a letter, before
# something that is no letter, mark, digit or apostrophe. Cutting there changes no word. (After a space it might: which
# word a space belongs to depends on what follows.) And no token such as <think> or <|fim_prefix|> is cut in two.
_CUT = regex.compile(r"(?<=\p{L})(?=[^\p{L}\p{M}\p{N}'_|>\]-])")
_LAST_CUT = regex.compile(rf"(?r){_CUT.pattern}")
PIECE_CHARACTERS = 1 << 20


def resolve(pattern: str) -> str:
    """The regular expression behind a name of `PATTERNS`; a regular expression is returned as it is.

    Raises:
        ValueError: if `pattern` is an unknown name, does not compile, or has capturing groups.
    """
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if regex.fullmatch(r"[\w-]*", pattern):   # no expression that splits text looks like this, a mistyped name does
        raise ValueError(f"pattern={pattern!r} is not one of {', '.join(PATTERNS)}; or give a regular expression")
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error
    if compiled.groups:
        raise ValueError(f"pattern={pattern!r} has capturing groups; write (?:...) for (...)")
    return pattern


def split(text: str, pattern: str) -> list[str]:
    """The words of `text`, in order; joined they are the text.

    Args:
        text: any text.
        pattern: a name of `PATTERNS` or a regular expression; "" takes the whole text as one word.

    Raises:
        ValueError: if the pattern leaves part of the text unmatched (tiktoken would drop that part without a word).

    Example:
        >>> split("Hello world,  it's 2024", "gpt2")
        ['Hello', ' world', ',', ' ', ' it', "'s", ' 2024']
    """
    if not pattern:
        return [text] if text else []
    words = regex.findall(resolve(pattern), text)
    if sum(map(len, words)) != len(text):
        raise ValueError(f"pattern={pattern!r} does not match every character of the text; end it with `|\\s|.`")
    return words


def pieces(text: str, size: int | None = None) -> Iterator[str]:
    """Cut a long text where no pattern of `PATTERNS` could tell: the words of the pieces are the words of the text.

    Pieces bound the memory of counting and are what parallel workers share out. They have about a million characters,
    or `size`; a text without a safe cut (one endless word) stays whole.
    """
    start, size = 0, size or PIECE_CHARACTERS
    while len(text) - start > size and (cut := _CUT.search(text, start + size)):
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]


def last_cut(text: str) -> int:
    """Where the last of the safe cuts of `pieces` lies; 0 if there is none.

    Example:
        >>> last_cut("two words, 1 number 2")
        19
    """
    found = _LAST_CUT.search(text)
    return found.start() if found else 0


def read_pieces(path: str | Path) -> Iterator[str]:
    """As `pieces`, from a UTF-8 file that is never in memory as a whole.

    Raises:
        ValueError: if the file is not UTF-8; names the file and the bytes.
    """
    rest = ""
    with open(path, encoding="utf-8", newline="") as file:   # newline="": "\r\n" is text like any other
        try:
            while block := file.read(PIECE_CHARACTERS):
                text = rest + block
                cut = _LAST_CUT.search(text, max(len(rest) - 1, 0))
                end = cut.start() if cut else 0
                yield text[:end]
                rest = text[end:]
        except UnicodeDecodeError as error:
            found = error.object[error.start : error.end].hex(" ")
            raise ValueError(f"{path} is not UTF-8 (bytes {found}); convert it, e.g. iconv -t utf-8") from error
    yield rest
