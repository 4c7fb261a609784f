"""Characters of tokens: shared out without gap or overlap, with and without a tokenizer's offsets."""

import pytest
from transformers import ByT5Tokenizer

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation import reading
from hybridlm.evaluation.inspector.spans import token_spans

ODD = "Été à  Noël\n\n“No — 𝄞 €5,” <|endoftext|> said </script> she.\n"


def test_tokens_share_the_text_out(tokenizer):
    spans = token_spans(tokenizer, ODD, 1000)
    pieces = [spans.piece(token) for token in range(len(spans.ids))]
    assert spans.ids == prompt_ids(tokenizer, ODD)
    assert pieces[0] == ""
    assert "".join(pieces) == spans.text == ODD
    whole, at = ODD.encode(), 0
    for token, piece in zip(spans.ids[1:], pieces[1:], strict=True):  # one letter of a byte-level token is one byte
        at += len(tokenizer.convert_ids_to_tokens([token])[0])
        until = len(whole[:at].decode("utf-8", "ignore"))  # the characters that are whole by now
        assert spans.text[until - len(piece) : until] == piece
    assert "𝄞" in pieces
    assert pieces[pieces.index("𝄞") - 1] == ""  # belongs to the last of its tokens


def test_a_tokenizer_without_offsets_is_decoded():
    slow = ByT5Tokenizer()
    assert not slow.is_fast
    text = ODD.replace("<|endoftext|>", "") * 3
    spans = token_spans(slow, text, 10_000)
    assert spans.text == text
    assert spans.ids[1:] == [byte + 3 for byte in text.encode()]
    sizes = [len(spans.piece(token)) for token in range(1, len(spans.ids))]
    wanted = [size for character in text for size in [0] * (len(character.encode()) - 1) + [1]]
    assert sizes == wanted


@pytest.mark.parametrize("limit", [2, 30, 200])
def test_only_the_beginning_is_taken(tokenizer, text, limit, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 50)
    spans = token_spans(tokenizer, text, limit)
    assert spans.ids == prompt_ids(tokenizer, text)[:limit]
    assert text.startswith(spans.text)
    assert spans.ends[-1] == len(spans.text) < len(text)
    slow = ByT5Tokenizer()
    assert token_spans(slow, text, limit).text == text.encode()[: limit - 1].decode("utf-8", "ignore")


def test_a_text_of_no_token(tokenizer):
    with pytest.raises(UserError, match="makes no token of its 0 characters"):
        token_spans(tokenizer, "", 10)
