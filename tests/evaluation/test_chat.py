"""A conversation: every token is read once, and what was printed is what was read."""

import io
import os
import signal
from contextlib import contextmanager

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.chat import Chat
from hybridlm.evaluation.reading import new_ids, read_text, save_state
from hybridlm.evaluation.turns import TextTurns

SETTINGS = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 3}


@pytest.fixture
def model(build):
    """One that does not repeat the last token."""
    return build(tie_word_embeddings=False)


@pytest.fixture
def talk(model, tokenizer):
    return Chat(model, tokenizer, TextTurns(tokenizer), **SETTINGS)


@contextmanager
def read_by(model):
    """The tokens that go through the model's stack, call after call."""
    calls = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args[0] if args else kwargs["input_ids"])[0].tolist()), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def greedy(model, ids, tokens=12):
    ids = torch.tensor([ids])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)[0].tolist()


def ends_at(model, tokenizer, call):
    """The model draws its end symbol in that call of its head."""
    calls = iter(range(1000))

    def end(_, __, logits):
        if next(calls) == call:
            logits[..., tokenizer.eos_token_id] = 1e9

    return model.lm_head.register_forward_hook(end)


@pytest.mark.parametrize("pattern", ["rglru bmru", "lru attention", "mamba2 sliding_attention"])
def test_every_token_is_read_once_and_answers_are_those_of_the_whole_text(build, tokenizer, pattern):
    model = build(pattern, sliding_window=8, tie_word_embeddings=False)
    talk, text = Chat(model, tokenizer, TextTurns(tokenizer), **SETTINGS), []
    for turn in ("Anne had", " been a very pretty girl,", "", " but"):
        with read_by(model) as calls:
            stream = io.StringIO()
            answer = talk.say(turn, stream)
        new = prompt_ids(tokenizer, turn) if not text else new_ids(tokenizer, turn)[0].tolist()
        held = text[-1:]  # the last token of an answer is read with the turn behind it
        text = greedy(model, text + new)
        assert answer == tokenizer.decode(text[-12:])
        assert stream.getvalue() == answer + "\n"
        assert calls[0] == held + new
        assert calls[1:] == [[token] for token in text[-12:-1]]
        assert len({*text[-12:]}) > 6
        assert talk.tokens == len(text)


def test_a_saved_conversation_goes_on_with_the_same_tokens(model, build, tokenizer, tmp_path):
    drawn = {**SETTINGS, "temperature": 1.5}
    talk = Chat(model, tokenizer, TextTurns(tokenizer), **drawn)
    talk.say("Anne had")
    talk.save(tmp_path / "a.state")
    talk.save(tmp_path / "a.state")  # an older one is replaced
    other = Chat(build(tie_word_embeddings=False), tokenizer, TextTurns(tokenizer), **drawn)
    other.load(tmp_path / "a.state")
    for turn in (" been", "", " but"):
        assert other.say(turn) == talk.say(turn)
    assert other.tokens == talk.tokens


def test_a_text_that_was_read_is_gone_on_from(model, tokenizer, text, talk, tmp_path):
    read, _ = read_text(model, tokenizer, text)
    save_state(model, tokenizer, read, tmp_path / "book.state")
    talk.load(tmp_path / "book.state")
    ids = [*prompt_ids(tokenizer, text), *new_ids(tokenizer, " Anne")[0].tolist()]
    assert talk.say(" Anne") == tokenizer.decode(greedy(model, ids)[len(ids) :])


def test_another_answer_takes_the_place_of_the_last(model, tokenizer, talk):
    talk.settings["temperature"] = 1.5
    other = Chat(model, tokenizer, TextTurns(tokenizer), **talk.settings)
    other.answers = 1
    first = talk.say("Anne")
    second = talk.retry()
    assert first != second == other.say("Anne")
    talk.say(" had")
    other.answers = 3
    assert talk.retry() == other.say(" had")
    assert talk.say("") == other.say("")
    assert talk.tokens == other.tokens


class Interrupts(io.StringIO):
    """Ctrl-C as the third piece of an answer is printed, and `more` times after it."""

    def __init__(self, more=0):
        super().__init__()
        self.pieces, self.more = 0, more

    def write(self, text):
        self.pieces += 1
        if 3 <= self.pieces <= 3 + self.more:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on_from_there(model, tokenizer, talk):
    whole = Chat(model, tokenizer, TextTurns(tokenizer), **SETTINGS).say("Anne")
    stream = Interrupts()
    part = talk.say("Anne", stream)
    assert talk.stopped
    assert stream.getvalue() == part + "\n"
    assert 0 < len(part) < len(whole)
    rest = talk.say("")
    assert (part + rest).startswith(whole)
    assert not talk.stopped
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves_the_conversation_as_it_was(model, tokenizer, talk):
    talk.say("Anne had")
    other = Chat(model, tokenizer, TextTurns(tokenizer), **SETTINGS)
    other.say("Anne had")
    with pytest.raises(KeyboardInterrupt):
        talk.say(" been", Interrupts(more=1))
    assert talk.tokens == other.tokens
    assert talk.say(" but") == other.say(" but")


def test_ctrl_c_while_a_turn_is_read_leaves_the_conversation_as_it_was(model, tokenizer, talk):
    talk.say("Anne had")
    before = talk.tokens
    forwards = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        talk.say(" been")
    hook.remove()
    assert forwards == []  # it ended in the first one
    assert talk.tokens == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other = Chat(model, tokenizer, TextTurns(tokenizer), **SETTINGS)
    other.say("Anne had")
    assert talk.say(" been") == other.say(" been")


def test_the_end_of_a_text_is_not_read(model, tokenizer, talk):
    hook = ends_at(model, tokenizer, 4)
    answer = talk.say("Anne")
    hook.remove()
    ids = prompt_ids(tokenizer, "Anne")
    written = greedy(model, ids, 4)
    assert answer == tokenizer.decode(written[len(ids) :])
    assert talk.ended
    assert talk.tokens == len(written)
    with pytest.raises(UserError, match="the text has ended here, and an empty turn adds nothing"):
        talk.say("")
    ids = written + new_ids(tokenizer, " but")[0].tolist()
    assert talk.say(" but") == tokenizer.decode(greedy(model, ids)[len(ids) :])


def test_an_answer_ends_behind_a_text_that_was_read(model, tokenizer, talk):
    whole = talk.say("Anne")
    assert "%h" in whole[:-2]
    other = Chat(model, tokenizer, TextTurns(tokenizer), "%h", **SETTINGS)
    part = other.say("Anne")
    assert part == whole.partition("%h")[0] + "%h"
    assert (part + other.say("")).startswith(whole)


def test_states_that_do_not_serve_leave_the_conversation_alone(build, model, tokenizer, talk, tmp_path):
    other = Chat(build("lru"), tokenizer, TextTurns(tokenizer), **SETTINGS)
    other.say("Anne")
    other.save(tmp_path / "lru.state")
    (tmp_path / "notes.txt").write_text("mine")
    alone = Chat(model, tokenizer, TextTurns(tokenizer), **SETTINGS)
    for chat in (talk, alone):
        chat.say("Anne")
    refused = {"lru.state": "another model wrote it", "notes.txt": "not a whole safetensors file", "no": "no such file"}
    refused |= {"a" * 300: "cannot be read .File name too long", ".": "that is a folder"}
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            talk.load(tmp_path / name)
    with pytest.raises(UserError, match=r"notes\.txt: a file that is no state stands there"):
        talk.save(tmp_path / "notes.txt")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("nowhere/x", r"the folder .* does not exist"),
        ("pipe", "a device, pipe or socket stands there"),
        ("a\0b", "the character NUL"),
        ("a" * 300, "cannot be written .File name too long"),
        ("a" * 250, "cannot be written .File name too long"),  # with what is written aside
    ):
        with pytest.raises(UserError, match=message):
            talk.save(tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert talk.say(" but") == alone.say(" but")


def test_what_cannot_be_done_is_said(model, tokenizer, talk, tmp_path):
    for ask, message in (
        (lambda: talk.save(tmp_path / "x"), "nothing was read yet"),
        (talk.retry, "nothing was said yet"),
        (lambda: talk.say("\udcff"), "not UTF-8"),
    ):
        with pytest.raises(UserError, match=message):
            ask()
    talk.say("Anne")
    with pytest.raises(UserError, match="would be the same again"):
        talk.retry()
    talk.reset()
    assert talk.tokens == 0
    config = GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    with pytest.raises(UserError, match="model_type is 'gpt2'"):
        Chat(GPT2LMHeadModel(config), tokenizer, TextTurns(tokenizer), **SETTINGS)


def test_full_attention_beyond_what_it_was_made_for(build, tokenizer):
    for pattern, too_long in (("lru attention", True), ("lru bmru", False)):
        talk = Chat(build(pattern, max_position_embeddings=12), tokenizer, TextTurns(tokenizer), **SETTINGS)
        assert not talk.too_long
        talk.say("Anne had been")
        assert talk.too_long is too_long
