"""From text to token windows: tokenizer, token shards on disk, and a loader whose order is a pure function."""

from hybridlm.data.loader import Windows, batches, validation_batches
from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.data.shards import TokenShards
from hybridlm.data.sources import Corpus, Source
from hybridlm.data.split import ValidationConfig
from hybridlm.data.tokenizer import document_ids, load_tokenizer, train_tokenizer

__all__ = [
    "Corpus",
    "PrepareConfig",
    "Source",
    "TokenShards",
    "ValidationConfig",
    "Windows",
    "batches",
    "document_ids",
    "load_tokenizer",
    "prepare",
    "train_tokenizer",
    "validation_batches",
]
