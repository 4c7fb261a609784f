"""Weights, gradients and optimizer state dealt out over the processes (`parallel.kind: fsdp`): torch's `fully_shard`.

Groups, each gathered and given back as one:

    a layer's linear maps      in the precision of the products (bf16: half as many bytes), which is all that they are
                               used in under autocast, so that nothing is rounded that would not be
    the rest of the layer      norms, convolutions, what a recurrence owns: always in fp32, as a decay in bf16 is
                               another decay. In fp32 a layer is one group
    the rest of the model      embedding, last norm and head, in fp32: it stays gathered during a step, as the loss
                               reads the head's weight without calling the head

Gradients are added up and reduced in fp32. `fully_shard` puts other parameters in the place of the model's; the marks
that parameter groups are made by go over to them. One process alone holds everything and runs as without.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hybridlm.errors import UserError
from hybridlm.model.block_hybridlm import HybridLMDecoderLayer
from hybridlm.model.modeling_hybridlm import HybridLMForCausalLM
from hybridlm.training.arrangement import sharded_over
from hybridlm.training.sections import PretrainConfig


def refuse_unshardable(config: PretrainConfig, processes: int) -> None:
    """Raises UserError for settings that sharded weights do not go with."""
    if config.parallel.kind != "fsdp" or processes == 1:
        return
    problem = None
    if config.optimizer.kind == "muon":
        problem = "optimizer.kind='muon'", "its update needs whole matrices", "Use optimizer.kind=adamw"
    elif config.training.mixed_precision == "fp16":
        problem = (
            "training.mixed_precision='fp16'",
            "its loss scale is not tried on gradients that are dealt out",
            "Use training.mixed_precision=bf16",
        )
    elif config.training.compile:
        problem = (
            "training.compile=true",
            "weights that come and go layer by layer are not compiled",
            "Set training.compile=false",
        )
    if problem is not None:
        given, why, advice = problem
        raise UserError(
            f"{given} does not go with parallel.kind='fsdp' in {processes} processes: {why}. {advice}, or "
            "parallel.kind=ddp."
        )


def weight_mesh(config: PretrainConfig, accelerator: Accelerator) -> DeviceMesh | None:
    """How the processes hold the weights: all of them one copy, or (copies, parallel.shard); None where each holds
    everything. Every process calls it at once."""
    world = accelerator.num_processes
    kind, shard = accelerator.device.type, sharded_over(config, world)
    if config.parallel.kind != "fsdp" or world == 1:
        return None
    if shard == world:
        return init_device_mesh(kind, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (world // shard, shard), mesh_dim_names=("replicate", "shard"))


def shard(model: Any, mesh: DeviceMesh, config: PretrainConfig) -> None:
    """Deals the weights of a HybridLMForCausalLM out, in place; moves them to the mesh's devices.

    Afterwards its parameters are DTensors with this process's part, and the model must be called by all processes
    alike.
    """
    names = [name for name, _ in model.named_parameters()]
    marks = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
    reshard = config.parallel.reshard
    whole: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": reshard}
    for layer in model.modules():
        if not isinstance(layer, HybridLMDecoderLayer):
            continue
        if config.training.mixed_precision == "bf16":
            products = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            maps: list[nn.Module] = [module for module in layer.modules() if type(module) is nn.Linear]
            fully_shard(maps, mp_policy=products, **whole)
        fully_shard(layer, **whole)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    assert names == [name for name, _ in model.named_parameters()], "sharding must leave every parameter its name"
    for name, parameter in model.named_parameters():
        for mark, value in marks[name].items():
            setattr(parameter, mark, value)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def give_back(model: nn.Module) -> None:
    """Gives gathered weights back, which a forward without a backward leaves as they are: the next one would see old
    ones. Nothing where the model is not sharded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def accumulating(accelerator: Accelerator, model: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay in each process inside: more are to come."""
    return _unreduced(model) if isinstance(model, FSDPModule) else accelerator.no_sync(model)


@contextmanager
def _unreduced(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be dealt out; every process calls it then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be dealt out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, dealt out as `parameter` is. Nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    whole = whole.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def gathered(model: Any, main: bool) -> Any:
    """The model with whole weights on the CPU, to be saved; None where not `main`. Every process calls it. A model that
    is not sharded is given as it is."""
    if not is_sharded(model):
        return model
    give_back(model)
    tensors: dict[str, Tensor] = {}
    once: dict[int, Tensor] = {}  # a tied parameter has two names
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in once:
            whole = full(tensor.detach())
            once[id(tensor)] = whole.cpu() if main else torch.empty(0)  # the next one needs the room
        tensors[name] = once[id(tensor)]
    if not main:
        return None
    with torch.device("meta"):
        shell = HybridLMForCausalLM(copy.deepcopy(model.config))
    shell.load_state_dict(tensors, assign=True)
    shell.tie_weights()
    shell.generation_config = model.generation_config
    return shell
