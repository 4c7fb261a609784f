"""torch.compile in a run: the same numbers up to rounding, the same names; a clear word where it cannot be."""

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.backends.debugging import aot_eager

from hybridlm.errors import UserError
from hybridlm.training import compiling
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows

# torch's own: inductor imports modules that are written with the one, dynamo traces autograd functions by the other.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _no_graphs_left():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same_numbers(eager, compiled, *folders: str) -> None:
    for one, two in zip(read_rows(eager.metrics), read_rows(compiled.metrics), strict=True):
        assert one.keys() == two.keys()
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name in folders:
        left, right = (load_file(result.run_folder / name / "model.safetensors") for result in (eager, compiled))
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            torch.testing.assert_close(right[key], tensor, rtol=0, atol=1e-3)


def test_compiled_is_eager_up_to_rounding(recipe):
    """All the way through the C++ compiler, which takes its time: a small model, one step."""
    settings = ("training.steps=1", "model={pattern: mingru, hidden_size: 8, intermediate_size: 0, conv_kernel: 0}")
    eager = pretrain(recipe(*settings, "run.name=eager"))
    compiled = pretrain(recipe(*settings, "run.name=compiled", "training.compile=true"))
    same_numbers(eager, compiled, "final")


def test_the_rest_of_a_run_beside_compiled_steps(recipe, interrupted, monkeypatch):
    """Annealing, validation, samples, the average and a resume; few graphs, whatever epsilon is. Without the C++."""
    settings = (
        "training.steps=8", "training.micro_batch_size=2", "validation.every=4", "training.ema_decay=0.5",
        "write_penalty=1e-2", "logging.samples={every: 4, max_new_tokens: 3}",
    )  # fmt: skip
    eager = pretrain(recipe(*settings, "run.name=eager"))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend=backend))
    config = recipe(*settings, "run.name=compiled", "training.compile=true")
    interrupted(config, 6)
    made = len(graphs)
    compiled = pretrain(config)
    assert 1 <= made <= 4
    same_numbers(eager, compiled, "final", "final-ema")
    texts = [read_rows(result.run_folder / "samples.jsonl") for result in (eager, compiled)]
    assert [row["step"] for row in texts[0]] == [row["step"] for row in texts[1]] == [4, 8]


def test_steps_that_go_on_from_carried_states(recipe, interrupted, monkeypatch):
    """Few graphs, and the numbers of eager steps; over a stop too. Without the C++, and without memory units, in which
    rounding decides whether a unit writes."""
    settings = (
        "data.carry_state=true", "training={steps: 5, batch_size: 4, micro_batch_size: 2}", "data.sequence_length=32",
        "model={pattern: rglru mamba2, hidden_size: 16, mamba_d_head: 8}",
    )  # fmt: skip
    eager = pretrain(recipe(*settings, "run.name=eager"))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend=backend))
    config = recipe(*settings, "run.name=compiled", "training.compile=true")
    interrupted(config, 3)
    compiled = pretrain(config)
    assert 1 <= len(graphs) <= 4
    same_numbers(eager, compiled, "final")


def test_a_missing_compiler_is_said_before_training(recipe, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/g++",))
    monkeypatch.setattr("hybridlm.training.loop.backward", lambda *_: pytest.fail("went on"))
    with pytest.raises(
        UserError, match=r"training\.compile=true does not work here: .*No working C\+\+ compiler found"
    ):
        pretrain(recipe("training.compile=true"))


def test_a_python_or_system_without_torch_compile(recipe, monkeypatch):
    def unsupported(*_, **__):
        raise RuntimeError("torch.compile is not supported on this system\nmore")

    monkeypatch.setattr(compiling.torch, "compile", unsupported)
    with pytest.raises(UserError, match=r"does not work here: torch\.compile is not supported on this system torch"):
        pretrain(recipe("training.compile=true"))
