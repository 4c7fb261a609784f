"""The tokenizer keeps every text, starts every text, and never takes text for its special token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hybridlm.data.tokenizer import END_OF_TEXT, document_ids, load_tokenizer, text_bytes, train_tokenizer
from hybridlm.errors import UserError

TEXTS = [
    "the sea was calm and the old ship went slowly past the house",
    "she wrote one more letter, and waited; naïve café",
]
TOKENIZER = train_tokenizer(TEXTS, 300)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_round_trips(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    assert ids[0] == TOKENIZER.eos_token_id
    assert document_ids(TOKENIZER, text) == ids
    assert text_bytes(TOKENIZER, ids[1:]) == len(text.encode())


def test_the_special_token_written_out_is_text():
    ids = document_ids(TOKENIZER, f"a {END_OF_TEXT} b")
    assert ids.count(TOKENIZER.eos_token_id) == 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == f"a {END_OF_TEXT} b"


def test_training_is_deterministic_and_survives_a_save(tmp_path):
    again = train_tokenizer(TEXTS, 300)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()
    again.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = f"past the house {END_OF_TEXT}"
    assert (
        loaded(text)["input_ids"]
        == AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
        == TOKENIZER(text)["input_ids"]
    )


def test_a_tokenizer_with_two_symbols_puts_one_at_each_end():
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "<unk>": 4}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert document_ids(tokenizer, "a b") == [0, 2, 3, 1]
    assert text_bytes(tokenizer, [2, 3]) == 3


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="vocab_size=256"):
        train_tokenizer(TEXTS, 256)
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(UserError, match=rf"{tmp_path}: the folder holds no tokenizer\. Save .*save_pretrained"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_a_word_that_is_no_folder_is_not_looked_up_on_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def ask(name, **_):
        asked.append(name)
        raise OSError("offline")

    monkeypatch.setattr("hybridlm.data.tokenizer.AutoTokenizer.from_pretrained", ask)
    for name in ("nosuch", "./nosuch", "a/b/c"):
        with pytest.raises(UserError, match=r"there is no such folder.*OWNER/NAME"):
            load_tokenizer(name)
    with pytest.raises(UserError, match=r"cannot be loaded \(offline\)"):
        load_tokenizer("owner/name")
    assert asked == ["owner/name"]
