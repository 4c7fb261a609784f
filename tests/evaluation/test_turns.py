"""Turns as tokens: behind an answer, what a chat template adds to it; templates that cannot be added to are refused."""

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.chat import Chat
from hybridlm.evaluation.turns import TemplateTurns, TextTurns, check_form, turns_for

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST = "{{ messages[-1].content }}<|im_end|>"
COUNTS = "{% for m in messages %}{{ messages | length }}{{ m.content }}\n{% endfor %}"
NUMBERS = (
    "{% for m in messages %}{{ 'A: ' if m.role == 'assistant' else loop.index ~ '. ' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML


@pytest.fixture
def chatty(tokenizer):
    """A tokenizer with a chat template, whose end symbol closes a turn."""

    def make(template=CHATML):
        inner = copy.deepcopy(tokenizer.backend_tokenizer)
        made = PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        made.chat_template = template
        return made

    return make


def test_a_base_model_reads_what_was_typed_or_a_form_of_it(tokenizer):
    plain = TextTurns(tokenizer)
    assert plain.ids("Anne", first=True) == prompt_ids(tokenizer, "Anne")
    assert plain.ids(" had", first=False) == prompt_ids(tokenizer, " had")[1:]
    form = TextTurns(tokenizer, r"\nQ: {}\nA:")
    assert form.ids("why {}?", first=True) == prompt_ids(tokenizer, "\nQ: why {}?\nA:")
    assert form.ids("", first=True) == prompt_ids(tokenizer, "")
    for bad in ("Q", "{} {}"):
        with pytest.raises(UserError, match=r"needs \{\} once"):
            check_form(bad)


def test_turns_are_what_the_template_makes_of_the_whole_conversation(chatty, build):
    tokenizer = chatty()
    model = build(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    settings = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    talk = Chat(model, tokenizer, turns_for(tokenizer, system="Be brief."), **settings)
    read, messages = [], [{"role": "system", "content": "Be brief."}]
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.extend(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    for turn in ("Anne?", " Her bloom? ", "Early."):
        answer = talk.say(turn)
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    exact = CHATML.replace("m.content | trim", "m.content | trim if m.role != 'assistant' else m.content")
    whole = tokenizer.apply_chat_template(messages, chat_template=exact, tokenize=False)
    said = tokenizer.decode(read + talk.talk.pending_ids[0].tolist())
    assert whole == said + "<|im_end|>\n"
    assert read.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 7  # as special tokens


def test_white_space_in_front_of_an_answer_is_the_models_to_write(chatty):
    spaced = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    tokenizer = chatty(spaced)
    ids = TemplateTurns(tokenizer).ids("why", first=False)
    assert tokenizer.decode(ids) == "\nuser: why\nassistant:"


def test_templates_that_cannot_be_added_to(chatty):
    for template in (LAST, COUNTS, NUMBERS):
        with pytest.raises(UserError, match=r"does more than add each turn .* Give --format '\{\}'"):
            TemplateTurns(chatty(template))
    with pytest.raises(UserError, match="cannot be used"):
        TemplateTurns(chatty("{{ nothing.at.all }}"))
    TemplateTurns(chatty(NO_SYSTEM))
    with pytest.raises(UserError, match=r"cannot be used \(no system message\)"):
        TemplateTurns(chatty(NO_SYSTEM), system="Be brief.")
    spelt = chatty()
    spelt.split_special_tokens = True
    assert "spelt out as text" in TemplateTurns(spelt).said
    assert "spelt out" not in TemplateTurns(chatty()).said
    with pytest.raises(UserError, match="an empty turn"):
        TemplateTurns(chatty()).ids("", first=True)


def test_a_form_goes_before_a_template_and_a_system_message_needs_one(chatty, tokenizer):
    assert isinstance(turns_for(chatty(LAST), "{}"), TextTurns)
    assert isinstance(turns_for(tokenizer), TextTurns)
    assert isinstance(turns_for(chatty()), TemplateTurns)
    for given in ((tokenizer, None), (chatty(), "{}")):
        with pytest.raises(UserError, match="--system"):
            turns_for(*given, system="Be brief.")
