"""A text read once: the tokens and states of one piece, constant memory, answers from the end of it."""

import io
import shutil

import pytest
import torch
from launching import launch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from hybridlm.cli import main
from hybridlm.data.austen import austen_paths
from hybridlm.data.tokenizer import prompt_ids, train_tokenizer
from hybridlm.errors import UserError
from hybridlm.evaluation import reading
from hybridlm.evaluation.generate import generate_text
from hybridlm.evaluation.reading import (
    cache_bytes,
    load_state,
    new_ids,
    progress_line,
    read_book,
    read_text,
    token_pieces,
)


@pytest.fixture(autouse=True)
def _small_calls(monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "CALL", 16)
    monkeypatch.setattr(reading, "PIECE", 50)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def book(tmp_path, text):
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    return path


def states(cache):
    return [tensor for layer in cache.layers for tensor in layer._tensors()]


@pytest.mark.parametrize("size", [1, 7, 300])
def test_the_pieces_have_the_tokens_of_the_whole(tokenizer, text, size):
    odd = text + "\n\n  two  spaces \t tab\n \nAnne's  end "
    pieces = list(token_pieces(tokenizer, odd, size))
    assert [token for ids, _ in pieces for token in ids] == prompt_ids(tokenizer, odd)[1:]
    assert sum(characters for _, characters in pieces) == len(odd)
    assert len(pieces) > 2


def test_the_pieces_of_a_novel_have_its_tokens():
    novel = austen_paths()[0].read_text(encoding="utf-8")[:100_000]
    tokenizer = train_tokenizer([novel[:50_000]], vocab_size=400)
    pieces = list(token_pieces(tokenizer, novel, 1000))
    assert len(pieces) > 90
    assert [token for ids, _ in pieces for token in ids] == prompt_ids(tokenizer, novel)[1:]


def test_a_tokenizer_that_may_join_words_is_not_cut(tokenizer, text):
    joining = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    joining.add_tokens(["pretty girl"])
    assert len(list(token_pieces(joining, text, 50))) == 1
    assert len(list(token_pieces(tokenizer, text, 50))) > 5


@pytest.mark.parametrize("pattern", ["rglru bmru", "lru sliding_attention"])
def test_what_is_read_is_what_one_call_sees(build, tokenizer, text, pattern):
    model, ids, told = build(pattern, sliding_window=8), torch.tensor([prompt_ids(tokenizer, text)]), []
    talk, tokens = read_text(model, tokenizer, text, progress=lambda *where: told.append(where))
    assert tokens == ids.shape[1]
    assert torch.equal(talk.pending_ids, ids[:, -1:])
    assert talk.cache.get_seq_length() == tokens - 1
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(ids[:, :-1], past_key_values=cache)
        wanted = model(ids[:, -1:], past_key_values=cache).logits
        got = model(talk.pending_ids, past_key_values=talk.cache).logits
    assert torch.allclose(got, wanted, atol=1e-5)  # calls of 16 tokens and one long call sum products in another order
    assert [count for count, _ in told] == [*range(16, tokens - 1, 16), tokens - 1]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.2
    assert 0.99 < shares[-1] <= 1


def test_memory_is_constant_without_full_attention(build, tokenizer, text):
    """No tensor that lives between two calls grows, and the state neither."""

    def held(pattern, times):
        model, sizes = build(pattern, sliding_window=8), []
        cache = DynamicCache(config=model.config)
        talk = reading.Conversation.__new__(reading.Conversation)
        talk.cache, talk.pending_ids = cache, torch.tensor([[tokenizer.bos_token_id]])
        read_text(model, tokenizer, text * times, after=talk, progress=lambda *_: sizes.append(cache_bytes(cache)))
        return sizes

    for pattern in ("rglru bmru", "mamba2 sliding_attention"):
        assert len({*held(pattern, 1), *held(pattern, 5)}) == 1
    growing = held("lru attention", 1)
    assert growing == sorted(set(growing))


def test_a_second_volume(build, tokenizer, text):
    """In two volumes, cut between two words: the state of one, up to the rounding of products of other shapes."""
    model, place = build("rglru bmru"), text.index(" ", 300)
    whole, tokens = read_text(model, tokenizer, text)
    first, before = read_text(model, tokenizer, text[:place])
    both, after = read_text(model, tokenizer, text[place:], after=first)
    assert before + after == tokens
    assert torch.equal(both.pending_ids, whole.pending_ids)
    for one, two in zip(states(both.cache), states(whole.cache), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_an_answer_goes_on_from_the_end_of_the_text(build, tokenizer, text):
    model = build("rglru bmru", tie_word_embeddings=False)
    talk, _ = read_text(model, tokenizer, text)
    kept, stream = [tensor.clone() for tensor in states(talk.cache)], io.StringIO()
    for prompt in (" Anne", ""):
        ids = torch.tensor([[*prompt_ids(tokenizer, text), *new_ids(tokenizer, prompt)[0].tolist()]])
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        written = tokenizer.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True)
        answer = generate_text(model, tokenizer, prompt, max_new_tokens=12, temperature=0, state=talk, stream=stream)
        assert answer == prompt + written
        assert all(torch.equal(one, two) for one, two in zip(kept, states(talk.cache), strict=True))
        assert stream.getvalue() == answer + "\n"
        stream.seek(0)
        stream.truncate()
    fresh = generate_text(model, tokenizer, " Anne", max_new_tokens=12, temperature=0)
    assert fresh != generate_text(model, tokenizer, " Anne", max_new_tokens=12, temperature=0, state=talk)


def test_a_process_reads_and_others_answer(checkpoint, book, tmp_path, capsys):
    done = launch(["-m", "hybridlm.cli", "read", checkpoint, book, "--out", "book.state"])
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "book.state").stat().st_size
    assert f"book.state, {size:,} bytes, however long the text is" in done.stdout

    def answer(*words):
        asked = ["generate", str(checkpoint), " Anne", "--state", "book.state", "--max-new-tokens", "15", *words]
        assert main(asked) == 0
        return capsys.readouterr().out

    four, five = answer("--seed", "4"), answer("--seed", "5")
    assert four != five
    assert answer("--answers", "2", "--seed", "4") == f"[1, seed 4]\n{four}\n[2, seed 5]\n{five}"


def test_reading_on_from_a_file(checkpoint, book, tmp_path, capsys):
    assert main(["read", str(checkpoint), str(book), "--out", "one.state"]) == 0
    assert main(["read", str(checkpoint), str(book), "--after", "one.state", "--out", "two.state"]) == 0
    told = capsys.readouterr()
    assert told.out.count("tokens/s") == 2
    assert told.err == ""  # no progress where nobody watches
    assert (tmp_path / "one.state").read_bytes() != (tmp_path / "two.state").read_bytes()
    facts = read_book(checkpoint, book, "two.state", after="one.state")  # an older state is replaced
    assert facts["tokens"] > 100
    assert not facts["grows"]
    assert facts["state_bytes"] > facts["cache_bytes"] > 0


def test_full_attention_is_said_to_grow(build, tokenizer, book, capsys):
    build("lru attention").save_pretrained("model")
    tokenizer.save_pretrained("model")
    assert main(["read", "model", str(book), "--out", "book.state"]) == 0
    assert "it grows with the text, since lru attention has full attention" in capsys.readouterr().out


def test_progress_is_one_line_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for file, begin, end in (
        (Terminal(), "\r 25%  1,024 tokens, ", "\r"),
        (io.StringIO(), " 25%  1,024 tokens, ", "\n"),
    ):
        with progress_line(file, pause=0) as progress:
            progress(1024, 0.25)
        assert file.getvalue().startswith(begin)
        assert file.getvalue().endswith(end)
    with progress_line(file := io.StringIO()) as progress:
        progress(1024, 0.25)
    assert file.getvalue() == ""  # a pipe is told every half minute


def test_lines_in_a_pipe_come_twice_a_minute(monkeypatch):
    now = iter(range(0, 1000, 10))  # every call ten seconds after the one before
    monkeypatch.setattr(reading.time, "perf_counter", lambda: next(now))
    with progress_line(file := io.StringIO()) as progress:
        for call in range(1, 10):
            progress(100 * call, call / 10)
    assert file.getvalue().splitlines() == [
        " 30%  300 tokens, 10 a second", " 60%  600 tokens, 10 a second", " 90%  900 tokens, 10 a second",
    ]  # fmt: skip


def test_places_that_cannot_be_written_to(checkpoint, book, tmp_path):
    before = book.read_bytes()
    refused = {"nowhere/x": "does not exist", tmp_path: "that is a folder", book: "is no state"}
    refused["/proc/x.state"] = (
        r"^--out /proc/x\.state: cannot be written \(No such file or directory\)\. Give another place\.$"
    )
    for out, message in refused.items():
        with pytest.raises(UserError, match=message):
            read_book(checkpoint, book, out)
    assert book.read_bytes() == before


def test_a_place_that_becomes_unwritable_while_reading(checkpoint, book, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "check_place", lambda _: None)
    with pytest.raises(UserError) as refused:
        read_book(checkpoint, book, "/proc/x.state")
    said = str(refused.value)
    assert (said.count("/proc/x.state: "), said.count("cannot be written")) == (1, 1), said
    assert said.endswith(" Give another --out.")


def test_states_that_do_not_serve(checkpoint, build, tokenizer, model, book, tmp_path, text):
    read_book(checkpoint, book, "book.state")
    assert load_state(model, tokenizer, "book.state").notes["text"] == "book.txt"
    with pytest.raises(UserError, match="nothing: there is no such file"):
        load_state(model, tokenizer, "nothing")
    with pytest.raises(UserError, match=r"another model wrote it, with .*pattern 'rglru bmru' \(here 'lru'\)"):
        load_state(build("lru"), tokenizer, "book.state")
    other = train_tokenizer([text[:300]], vocab_size=290)
    with pytest.raises(UserError, match="read with another tokenizer"):
        load_state(model, other, "book.state")
    with pytest.raises(UserError, match=r"that is a folder\. Give a file that `hybridlm read --out` wrote"):
        load_state(model, tokenizer, tmp_path)
    (tmp_path / "empty.state").touch()
    with pytest.raises(UserError, match=r"not a whole safetensors file .*`hybridlm read`"):
        load_state(model, tokenizer, "empty.state")
    data = (tmp_path / "book.state").read_bytes()
    (tmp_path / "torn.state").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_state(model, tokenizer, "torn.state")
    with torch.no_grad():
        model.save_cache(model(torch.ones(2, 3, dtype=torch.long), use_cache=True).past_key_values, "two.state")
    with pytest.raises(UserError, match="holds 2 rows"):
        load_state(model, tokenizer, "two.state")
    with torch.no_grad():
        cache = model(torch.ones(1, 3, dtype=torch.long), use_cache=True).past_key_values
    model.save_cache(cache, "padded.state", attention_mask=torch.tensor([[0, 1, 1]]))
    with pytest.raises(UserError, match="padded, and cannot be read on"):
        read_book(checkpoint, book, "x.state", after="padded.state")
    model.save_cache(cache, "bare.state")
    with pytest.raises(UserError, match="Give a prompt"):
        generate_text(model, tokenizer, "", state=load_state(model, tokenizer, "bare.state"))


def test_other_models_and_options_are_refused(checkpoint, tokenizer, book, tmp_path, capsys):
    config = GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    with pytest.raises(UserError, match="model_type is 'gpt2'"):
        read_book("gpt2", book, "book.state")
    assert main(["generate", str(checkpoint), "--answers", "2", "--temperature", "0"]) == 2
    assert "they would all be the same" in capsys.readouterr().err
    assert main(["generate", str(checkpoint), "--answers", "0"]) == 2
    assert "answers=0: must be at least 1" in capsys.readouterr().err
    shutil.copy(book, "book.state")
    assert main(["generate", str(checkpoint), "--state", "book.state"]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
