"""How the command begins: Ctrl-C before anything is imported, another release of transformers, misspelt words."""

import importlib
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from launching import launch

import hybridlm_command
from hybridlm import cli
from hybridlm.cli import main

SPELLING = [
    (["generate", "m", "She", "--tmeperature", "1"], "no option --tmeperature; did you mean '--temperature'?\n"),
    (["generate", "m", "--max_new-tokens=5"], "no option --max_new-tokens; did you mean '--max-new-tokens'?\n"),
    (["read", "m", "book.txt", "--uot", "x"], "no option --uot; did you mean '--out'?\n"),  # which is required
    (["evaluate", "m", "-text", "x"], "no option -text; did you mean '--text'?\n"),
    (["pretrain", "--xyz", "3"], "no option --xyz\n"),
    (["generate", "m", "She", "was"], "unrecognized arguments: was\n"),
    (["genrate", "m"], "no command 'genrate'; did you mean 'generate'? (commands: demo, "),
    (["--verison"], "no option --verison; did you mean '--version'?\n"),
]


@pytest.mark.parametrize(("argv", "says"), SPELLING, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_misspelt_word_is_guessed_below_the_usage_of_its_command(argv, says, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.startswith(f"usage: hybridlm {argv[0] if argv[0] in cli.COMMANDS else '[-h]'} ")


def test_what_looks_like_an_option_and_is_none():
    parse = cli.build_parser().parse_args
    options = parse(["generate", "--top-k", "-1", "--temp", "0.5", "--", "m", "--she"])
    assert (options.top_k, options.temperature, options.prompt) == (-1, 0.5, "--she")
    assert parse(["generate", "m", "- she said"]).prompt == "- she said"
    assert parse(["generate", "m", "-"]).prompt == "-"


def test_ctrl_c_while_the_options_are_read(monkeypatch, capsys):
    """The help of pretrain imports the fields of a recipe."""
    monkeypatch.setattr("hybridlm.training.config.config_help", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["pretrain", "--help"]) == 130
    assert capsys.readouterr().err == "hybridlm: stopped by Ctrl-C.\n"


INTERRUPTED = """
import importlib.abc, os, signal, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "hybridlm":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(20)
            except BaseException:
                print("an import caught it", file=sys.stderr)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may have it ignored
import hybridlm_command
assert not {"torch", "transformers", "hybridlm"} & set(sys.modules)
sys.meta_path.insert(0, Slow())
sys.exit(hybridlm_command.main())
"""


def test_ctrl_c_in_the_first_imports_is_one_line_too():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "hybridlm: stopped by Ctrl-C.\n"


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, lambda *_: None])
def test_ctrl_c_is_left_as_it_was(handler):
    """A signal that is ignored, or handled by a caller, stays so inside too."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        with hybridlm_command.Importing("x"):
            ours = signal.getsignal(signal.SIGINT) is not handler
        assert ours == (handler is signal.default_int_handler)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_release_of_transformers_is_one_line():
    code = "import sys, transformers; transformers.__version__ = '5.24.0'; import hybridlm_command"
    run = ["-c", f"{code}; sys.exit(hybridlm_command.main())", "info", "model"]
    done = launch(run, imported="libraries")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: hybridlm was tested with transformers ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [ImportError("a bug"), ImportError("cannot import", name="transformers", path="x")])
def test_any_other_failing_import_is_not_hidden(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.delitem(sys.modules, "hybridlm.cli")
    monkeypatch.setattr("importlib._bootstrap._find_and_load_unlocked", fail)
    with pytest.raises(ImportError, match=str(error)):
        hybridlm_command.main()


def test_the_entry_point_is_installed_with_the_package():
    project = tomllib.loads((Path(hybridlm_command.__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["hybridlm"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert module in project["tool"]["setuptools"]["py-modules"]
