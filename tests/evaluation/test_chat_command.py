"""`hybridlm chat`: lines from a pipe, and a person at a terminal."""

import io
import os
import pty
import signal
import sys
import time

import pytest

from hybridlm.cli import main
from hybridlm.evaluation.generate import generate_text


@pytest.fixture
def chat(checkpoint, monkeypatch, tmp_path, capsys):
    """chat(lines, options...) -> exit code, answers, messages."""
    monkeypatch.chdir(tmp_path)

    def run(text, *options):
        typed = io.StringIO(text) if isinstance(text, str) else io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", typed)
        code = main(["chat", str(checkpoint), "--max-new-tokens", "8", *options])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_every_line_of_a_pipe_is_a_turn(chat, model, tokenizer):
    code, out, err = chat("Anne\n\n but\r\n", "--temperature", "0")
    text = generate_text(model, tokenizer, "Anne", max_new_tokens=16, temperature=0).removeprefix("Anne")
    assert code == 0
    assert out.replace("\n", "").startswith(text.replace("\n", ""))
    assert err == ""
    assert chat("")[:2] == (0, "")


def test_a_conversation_of_two_days(chat):
    _, whole, _ = chat("Anne had\n been\n but\n", "--temperature", "0")
    code, first, err = chat("Anne had\n/save day.state\n/quit\nnever read\n", "--temperature", "0")
    assert (code, err) == (0, "Saved 12 tokens to day.state.\n")
    code, second, err = chat("/load day.state\n been\n but\n", "--temperature", "0")
    assert (code, first + second) == (0, whole)
    assert err == "Loaded day.state, 12 tokens; what was said before is forgotten.\n"
    assert chat(" been\n but\n", "--temperature", "0", "--state", "day.state")[1] == second
    _, whole, _ = chat("Anne had\n been\n")
    first = chat("Anne had\n/save drawn.state\n")[1]
    assert first + chat(" been\n", "--state", "drawn.state")[1] == whole


def test_a_line_that_is_no_utf_8_is_left_out_alone(chat):
    code, out, err = chat(b"Anne\n\xff\xfe\n/load caf\xe9\n but\n")
    assert code == 2
    assert out == chat("Anne\n but\n")[1]
    assert err.startswith("that is not UTF-8, and was not read.\n")
    assert "2 of the lines could not be done" in err


def test_what_cannot_be_done_is_said_and_the_conversation_goes_on(chat):
    alone = chat("Anne\n but\n")[1]
    lines = ["Anne", "/sav x", "/load nothing", "/set temprature 1", "/set top_k 1.5", "/set top_p 2", "/save"]
    lines += ["/retry 5", " but"]
    code, out, err = chat("\n".join(lines))
    assert code == 2
    assert out == alone
    told = err.splitlines()
    for line, words in zip(
        told,
        (
            "/sav: there is no such command; did you mean '/save'? (commands: /save, /load, ",
            "state file nothing: there is no such file",
            "/set temprature: there is no such setting; did you mean 'temperature'? (settings: max_new_tokens, ",
            "/set top_k: needs a whole number",
            "top_p=2.0: must be above 0",
            "/save: needs the name of a file",
            "/retry 5: it takes nothing behind it",
            "hybridlm chat: 7 of the lines could not be done",
        ),
        strict=True,
    ):
        assert line.startswith(words)


def test_settings_and_a_turn_that_begins_with_a_slash(chat):
    _, out, err = chat("/set temperature=0\n/set\n//and\n/reset\n/help\n")
    assert err.splitlines()[:2] == ["max_new_tokens 8, temperature 0.0, top_p 1.0, top_k 0, seed 0"] * 2
    assert out == chat("//and", "--temperature", "0")[1]
    assert "/retry" in err
    assert "All is forgotten." in err


def test_an_encoding_that_lacks_a_character_gets_it_as_an_escape(checkpoint, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["generate", str(checkpoint), "l'été", "--max-new-tokens", "3"]) == 0
    assert out.buffer.getvalue().startswith(rb"l'\xe9t\xe9")


def test_options_are_looked_at_before_the_model(capsys):
    for options, message in (
        (["--format", "Q"], "needs {} once"),
        (["--temperature", "-1"], "temperature=-1.0: must be"),
        (["--stop", ""], "--stop: needs a text"),
        (["--system", "Be brief.", "--state", "x"], "--system: it stands in front of a first turn"),
    ):
        assert main(["chat", "nowhere", *options]) == 2
        assert message in capsys.readouterr().err


class Terminal:
    """The command on a terminal of its own, in a process that is forked from this one: importing takes seconds."""

    def __init__(self, words, folder):
        self.process, self.end = pty.fork()
        if self.process == 0:
            code = 1
            try:
                os.chdir(folder)
                os.environ["TERM"] = "dumb"
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
                code = main([str(word) for word in words])
            finally:
                os._exit(code)
        self.shown = ""

    def ended(self):
        """Waits for the end; the exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.process = None
        return code

    def close(self):
        if self.process is not None:
            os.kill(self.process, signal.SIGKILL)
            self.ended()
        os.close(self.end)

    def until(self, words, seconds=60):
        """Waits until `words` are shown behind what was waited for before; returns what was."""
        start = time.monotonic()
        while words not in self.shown:
            assert time.monotonic() - start < seconds, self.shown
            self.shown += os.read(self.end, 4096).decode()
        shown, _, self.shown = self.shown.partition(words)
        return shown

    def type(self, text):
        os.write(self.end, text.encode())


def test_at_a_terminal_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(checkpoint, tmp_path):
    terminal = Terminal(["chat", checkpoint, "--max-new-tokens", "1000000", "--temperature", "9"], tmp_path)
    try:
        terminal.until("what you type is continued as text")
        terminal.until("\n> ")
        terminal.type("Anne\n")
        terminal.until("Anne\r\n")
        terminal.until(" ")  # it writes
        terminal.type("\x03")
        terminal.until("\n> ")
        terminal.type("/save a.state\n")
        terminal.until("Saved ")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
        assert (tmp_path / "a.state").is_file()
    finally:
        terminal.close()
