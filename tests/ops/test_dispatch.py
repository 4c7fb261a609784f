"""Which path is chosen, how one is forced, and that a wrong kernel is never used."""

import logging

import pytest
import torch
from launching import launch

from hybridlm import HybridLMConfig, HybridLMForCausalLM, ops
from hybridlm.errors import UserError
from hybridlm.model import seam_hybridlm
from hybridlm.ops import dispatch
from hybridlm.ops.errors import Unavailable


@pytest.fixture
def fresh():
    """Choices are remembered: forgotten before and after."""
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()


def test_the_seam_is_open():
    """A circular import would close it without a word."""
    from hybridlm.ops import registered

    assert seam_hybridlm.registered is registered


def test_every_place_has_a_path():
    assert ops.explain("cpu").split(":")[0] in ("cpu", "torch")
    assert ops.explain("meta").startswith("torch: ")
    assert "asked for" in ops.explain("cpu", path="torch")


@pytest.mark.parametrize("path", ["", "fast", "CPU"])
def test_an_unknown_path_is_refused_everywhere(path):
    x = torch.zeros(1, 3, 2)
    for call in (
        lambda: ops.linear_scan(x, x, path=path),
        lambda: ops.lru_scan((x[0, 0], x[0, 0]), (x, x), path=path),
        lambda: ops.memory_scan(x, x, path=path),
        lambda: ops.explain(path=path),
        lambda: ops.using(path).__enter__(),
    ):
        with pytest.raises(ValueError, match="choose one of reference, torch, cpu, triton"):
            call()


def test_a_forced_path_that_cannot_run_is_an_error(fresh, monkeypatch):
    def missing():
        raise Unavailable("the C kernels were not built")

    monkeypatch.setattr("hybridlm.ops.cpu.library.library", missing)
    with pytest.raises(ValueError, match="path='cpu' cannot run here: the C kernels were not built"):
        ops.linear_scan(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), path="cpu")
    with pytest.raises(ValueError, match="cuda device"):
        ops.explain("cpu", path="triton")


def test_without_kernels_one_line_says_so_and_the_slow_path_runs(fresh, monkeypatch, caplog):
    def missing():
        raise Unavailable("the C kernels were not built")

    monkeypatch.setattr("hybridlm.ops.cpu.library.library", missing)
    x = torch.rand(1, 40, 2)
    with caplog.at_level(logging.WARNING, "hybridlm.ops"):
        states = [ops.linear_scan(x, x)[0] for _ in range(3)]
    assert torch.equal(states[0], ops.linear_scan(x, x, path="torch")[0])
    assert [record.getMessage() for record in caplog.records] == [
        "scans run in pure PyTorch, which is slower: the C kernels were not built"
    ]
    assert ops.explain() == "torch: two-level scan in pure PyTorch; the C kernels were not built"


@pytest.mark.parametrize("name", sorted(dispatch.kernels("torch")))
def test_a_wrong_kernel_is_passed_over(fresh, monkeypatch, caplog, name):
    """Each of the six, off by one part in a thousand in its first result."""
    if not ops.explain().startswith("cpu"):
        pytest.skip(ops.explain())
    dispatch._choose.cache_clear()
    right = dispatch.kernels("cpu")

    def wrong(*args, **kwargs):
        first, *others = right[name](*args, **kwargs)
        return first * 1.001, *others

    monkeypatch.setattr(dispatch, "kernels", lambda path: right | {name: wrong})
    with caplog.at_level(logging.WARNING, "hybridlm.ops"):
        assert ops.explain().startswith("torch: ")
    assert f"{name.split('_')[0]}_scan is off by" in caplog.text


def test_a_kernel_that_fails_is_passed_over(fresh, monkeypatch):
    def fails(*args):
        raise OSError("illegal instruction")

    broken = dict.fromkeys(dispatch.kernels("torch"), fails)
    monkeypatch.setattr(dispatch, "kernels", lambda path: broken)
    if "not built" not in ops.explain():
        assert "linear_scan failed with OSError: illegal instruction" in ops.explain()


def test_using_forces_and_lets_go():
    x = torch.rand(1, 40, 2, requires_grad=True)
    with ops.using("reference"):
        states, _ = ops.linear_scan(x, x)
        assert "Stack" in type(states.grad_fn).__name__
        with ops.using("torch"):
            assert "Stack" not in type(ops.linear_scan(x, x)[0].grad_fn).__name__
    assert dispatch.forced() is None


def test_the_check_leaves_the_random_state_alone(fresh):
    before = torch.get_rng_state()
    ops.explain()
    assert torch.equal(torch.get_rng_state(), before)


def in_fresh_process(code, **environment):
    done = launch(["-c", code], env=environment, imported="libraries")
    return done.returncode, done.stdout.strip(), done.stderr


def test_the_environment_forces_a_path():
    code = "from hybridlm import ops; print(ops.explain())"
    status, printed, _ = in_fresh_process(code, HYBRIDLM_SCAN="torch")
    assert (status, printed) == (0, "torch: two-level scan in pure PyTorch; asked for")
    status, _, complaint = in_fresh_process(code, HYBRIDLM_SCAN="fast")
    assert status != 0
    assert "HYBRIDLM_SCAN='fast': there is no such path; choose one of" in complaint
    assert complaint.count("File ") < 6  # not the traceback of every import


def test_a_variable_that_cannot_be_is_named_by_whatever_meets_it(fresh, monkeypatch):
    x = torch.rand(1, 3, 2)
    for path, message in (
        ("fast", "HYBRIDLM_SCAN='fast': there is no such path"),
        ("triton", r"HYBRIDLM_SCAN='triton' cannot run here: .*Unset it"),
    ):
        monkeypatch.setattr(dispatch, "_from_environment", path)
        monkeypatch.setattr(dispatch, "_forced", path)
        for call in (lambda: ops.linear_scan(x, x), lambda: ops.memory_scan(x[:, :1], x[:, :1]), ops.explain):
            with pytest.raises(UserError, match=message):
                call()
        with ops.using("torch"), pytest.raises(UserError, match=f"^path='{path}'"):
            ops.linear_scan(x, x, path=path)


def test_the_command_ends_in_one_message():
    path = "CPU"  # in capitals it is another word
    code = (
        "import hybridlm_command, sys; sys.argv = ['hybridlm', 'generate', 'none']; sys.exit(hybridlm_command.main())"
    )
    status, printed, complaint = in_fresh_process(code, HYBRIDLM_SCAN=path)
    assert (status, printed) == (2, "")
    choices = "reference, torch, cpu, triton"
    assert complaint.splitlines()[-1] == (
        f"hybridlm generate: HYBRIDLM_SCAN='{path}': there is no such path; choose one of {choices}."
    )
    assert "Traceback" not in complaint


PATTERN = "lru rglru+bmru cmru acmru mingru fqbmru"


def test_the_model_gives_the_same_on_every_path():
    torch.manual_seed(0)
    config = HybridLMConfig(pattern=PATTERN, vocab_size=50, hidden_size=32, num_attention_heads=2)
    model = HybridLMForCausalLM(config)
    tokens = torch.randint(50, (2, 70))
    results = {}
    for path in ("reference", "torch", "cpu"):
        if path == "cpu" and not ops.explain().startswith("cpu"):
            continue
        with ops.using(path):
            model.zero_grad()
            out = model(input_ids=tokens, labels=tokens)
            out.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results[path] = (out.logits.detach(), grads)
    want, want_grads = results.pop("reference")
    for logits, grads in results.values():
        assert (logits - want).abs().max() < 1e-4
        for name, grad in want_grads.items():
            assert (grads[name] - grad).abs().max() < 1e-4 * max(1.0, grad.abs().max().item()), name


def test_the_model_says_which_path_it_takes():
    config = HybridLMConfig(pattern="rglru", vocab_size=20, hidden_size=16, num_attention_heads=2)
    assert HybridLMForCausalLM(config).scan_path == ops.explain()


WATCHED = """
import logging, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.ops import decode, dispatch, fused, index

class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))

logging.basicConfig(stream=sys.stderr)
config = HybridLMConfig(pattern="rglru+bmru lru mingru nfsm", vocab_size=30, hidden_size=16, num_attention_heads=2)
model, ids = HybridLMForCausalLM(config), torch.arange(8)[None]
with FlopCounterMode(display=False) as counted, Watching():
    model(input_ids=ids, labels=ids).loss.backward()
    tried = [check.cache_info().misses for check in (dispatch._choose, fused._right, index._wrong)]
    print(index._wrong("cpu", "cpu", torch.float32))
    print(tried, model.scan_path.split(":")[0], fused._right(torch.float32), decode._right(torch.float32))
assert counted.get_total_flops() > 0
"""


@pytest.mark.skipif(ops.explain("cpu").split(":")[0] != "cpu", reason="the C kernels cannot run here")
def test_kernels_are_tried_whatever_watches_torch():
    """A process whose first use of the kernels is inside modes that see all operations, and hooks of all modules: what
    they do to the trial must not turn the kernels off until the process ends."""
    done = launch(["-c", WATCHED])
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "None\n[1, 1, 1] cpu True True\n"
    assert "slower" not in done.stderr
