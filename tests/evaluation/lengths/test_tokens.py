"""Bytes of tokens, for tokenizers of several kinds, and what is predicted."""

import re
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hybridlm.data.tokenizer import prompt_ids, text_bytes
from hybridlm.errors import UserError
from hybridlm.evaluation.lengths.targets import PIECES, plan
from hybridlm.evaluation.lengths.tokens import Tokens, common_ends, tokens_of

SPECIAL = ["<unk>", "</s>"]


def fast(backend):
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def byte_fallback(text):
    """As Llama's first tokenizers: ▁ for spaces, bytes for characters that have no token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(pieces)
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], limit_alphabet=30
    )
    backend.train_from_iterator([text], trainer)
    return fast(backend)


def unigram(text):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        [text], trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    return fast(backend)


def words_apart(text):
    """Offsets leave out the spaces."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator([text], trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return fast(backend)


@pytest.fixture(scope="module")
def kinds(tokenizer, long_text):
    return [tokenizer, byte_fallback(long_text), unigram(long_text), words_apart(long_text)]


def test_tokens_are_those_of_a_prompt(kinds, long_text):
    for kind in kinds:
        tokens = tokens_of(kind, long_text)
        assert tokens.ids.tolist() == prompt_ids(kind, long_text)
        assert len(tokens) == len(tokens.ids) - 1
        assert tokens.n_bytes(0, len(tokens)).sum() == tokens.ends[-1] == len(long_text.encode())
        assert bool((tokens.ends.diff() >= 0).all())


def test_bytes_are_those_that_the_tokens_spell(tokenizer, long_text):
    """A byte-level vocabulary has a letter for each byte: an independent count, exact wherever a token ends whole."""
    tokens = tokens_of(tokenizer, long_text)
    data = long_text.encode()
    for end in common_ends([tokens]).tolist():
        count = tokens.before(end)
        assert text_bytes(tokenizer, tokens.ids[1 : count + 1].tolist()) == end
        data[:end].decode()  # never inside a character
    cut_characters = len(tokens) - len(common_ends([tokens]))
    assert cut_characters > 0  # there were characters of several tokens


def test_places_that_all_tokenizers_share(kinds, long_text):
    every = [tokens_of(kind, long_text) for kind in kinds]
    shared = common_ends(every).tolist()
    assert shared[-1] == len(long_text.encode())
    assert set(shared) == set.intersection(*(set(tokens.ends.tolist()) for tokens in every))
    assert 20 < len(shared) < min(len(tokens.ends.unique()) for tokens in every)
    for tokens in every:
        spans = [tokens.n_bytes(tokens.before(a), tokens.before(b)).sum() for a, b in pairwise(shared)]
        assert spans == torch.tensor(shared).diff().tolist()


def test_every_tokenizer_predicts_the_same_bytes(kinds, long_text):
    texts = [[tokens_of(kind, text) for kind in kinds] for text in ("too short", long_text, long_text[:500])]
    longest = min(map(len, texts[2]))
    targets = plan(texts, longest, ["a", "b", "c"])
    assert [each.document for each in targets] == [1, 2]
    assert 16 <= sum(len(each.n_bytes) for each in targets) <= PIECES + 2  # less: places are few in so short a text
    for each in targets:
        for tokens in texts[each.document]:
            first, last = each.span(tokens)
            assert first >= longest - longest // 2
            assert last == len(tokens)
            sums = each.sums(tokens, tokens.n_bytes(first, last))
            assert sums.tolist() == each.n_bytes.tolist()
    fullest = texts[1][max(range(4), key=lambda at: -len(texts[1][at]))]
    assert targets[0].span(fullest)[0] < longest - longest // 2 + 8  # as early as can be


def test_texts_that_are_too_short_are_refused(tokenizer, long_text):
    tokens = tokens_of(tokenizer, long_text)
    n = len(tokens)
    with pytest.raises(UserError, match=rf"the longest text, b, has {n} tokens\. Give lengths up to {n}"):
        plan([[tokens_of(tokenizer, "short")], [tokens]], n + 1, ["a", "b"])
    plan([[tokens]], n, ["b"])
    few = Tokens(tokens.ids[:9], tokens.ends[:8])
    with pytest.raises(UserError, match=r"needs 8 pieces\. These texts are too short for any lengths"):
        plan([[few]], 8, ["b"])
    with pytest.raises(UserError, match=r"has 8 tokens\. These texts are too short for any lengths"):
        plan([[few]], 9, ["b"])


@pytest.mark.parametrize("size", [12, 14, 16, 20, 60])
def test_lengths_that_an_error_advises_are_possible(tokenizer, long_text, size):
    tokens = tokens_of(tokenizer, long_text)
    text = Tokens(tokens.ids[: size + 1], tokens.ends[:size])
    with pytest.raises(UserError) as error:
        plan([[text]], 1000, ["b"])
    most = int(re.search(r"Give lengths up to (\d+)", str(error.value))[1])
    assert sum(len(each.n_bytes) for each in plan([[text]], most, ["b"])) >= 8
    if most < size:
        with pytest.raises(UserError, match=rf"needs 8 pieces\. Give lengths up to {most},"):
            plan([[text]], most + 1, ["b"])


def test_a_token_without_a_place_has_no_bytes():
    class Odd:
        bos_token_id = eos_token_id = 0

        def __call__(self, text, **_):
            return {"input_ids": [5, 6, 7], "offset_mapping": [(0, 2), (0, 0), (2, 5)]}

    tokens = tokens_of(Odd(), "été, so")
    assert tokens.ids.tolist() == [0, 5, 6, 7]
    assert tokens.ends.tolist() == [3, 3, 9]  # what the last token leaves over is its own


def test_a_tokenizer_without_places_is_refused(tokenizer, long_text):
    class Slow:
        bos_token_id = eos_token_id = 0

        def __call__(self, text, **_):
            raise NotImplementedError  # what slow tokenizers of transformers raise where they are asked for places

    with pytest.raises(UserError, match="a Slow does not say which characters"):
        tokens_of(Slow(), long_text)
