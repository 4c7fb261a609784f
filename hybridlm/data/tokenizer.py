"""Byte-level BPE tokenizers: training, loading, and the token ids of a whole document.

Our own tokenizer has one special token, `<|endoftext|>`: start, end, padding and unknown in one. It is put in front of
every text, so that a prompt starts as a training document does. The words "<|endoftext|>" inside a text are text, never
the special token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hybridlm.errors import UserError
from hybridlm.safe_loading import FAULTS, NO_CODE, brief

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # 256 bytes and the special token
LARGEST_VOCABULARY = 2**24  # the trainer reserves memory for as many


_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model")
"""What a folder with a tokenizer of any kind holds at least one of."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, fewer where the texts have fewer pairs to merge;
    deterministic."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size={vocab_size}: a byte-level tokenizer has 256 bytes and one special token, so at least "
            f"{SMALLEST_VOCABULARY}; choose e.g. 2048."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B:1",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path_or_name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, or by its name OWNER/NAME on the Hub. Raises UserError where there is none, or no end
    symbol."""
    name = str(path_or_name)
    folder = Path(name)
    if not folder.is_dir() and (looks_local(name) or "/" not in name):
        raise UserError(
            f"tokenizer={name!r}: there is no such folder. Give a folder that a tokenizer was saved to, or OWNER/NAME "
            "on the Hugging Face Hub."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **NO_CODE)
    except Exception as error:
        if not isinstance(error, FAULTS) and type(error) is not Exception:
            raise  # the `tokenizers` library raises Exception itself for a file that says something else
        if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in _FILES):
            raise UserError(
                f"{name}: the folder holds no tokenizer. Save the one that the model was trained with into it: "
                f"tokenizer.save_pretrained({name!r})."
            ) from error
        raise UserError(
            f"tokenizer={name!r}: it cannot be loaded ({_reason(error)}). "
            "Give a folder with tokenizer.json, or OWNER/NAME on the Hugging Face Hub."
        ) from error
    try:
        start_and_end(tokenizer)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return tokenizer


def _reason(error: Exception) -> str:
    return brief(error) if "trust_remote_code" in str(error) else str(error).partition("\n")[0].rstrip(".")


def looks_local(name: str) -> bool:
    """Whether a name can only mean a path: a name on the Hub is `name` or `user/name`, with no dot in front."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists() or "\\" in name


def start_and_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the symbols that begin and end a document; the same where the tokenizer has one for both."""
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise UserError("tokenizer: it has no end symbol (eos_token). Set one, so that documents can be told apart.")
    start = tokenizer.bos_token_id
    return (start if isinstance(start, int) else end), end


def document_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """[start] + tokens of the text, and [end] where that is another symbol than start."""
    start, end = start_and_end(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [start, *ids] if start == end else [start, *ids, end]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """[start] + tokens of the text: the beginning of a document, whatever the tokenizer itself would put around it."""
    start, end = start_and_end(tokenizer)
    ids = document_ids(tokenizer, text)
    return ids if start == end else ids[:-1]


def text_bytes(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    """UTF-8 bytes of the text that `ids`, the first tokens of a document behind its start symbol, stand for.

    Exact for byte-level tokenizers, also where the cut falls inside a character (one that puts a space in front of a
    text is one byte off); for others the bytes of the decoded text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and isinstance(backend.decoder, decoders.ByteLevel):
        return sum(len(token) for token in tokenizer.convert_ids_to_tokens(ids))  # one letter stands for one byte
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(str(text).rstrip("\ufffd").encode())
