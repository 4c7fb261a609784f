"""How the processes of a run are arranged, in one line, for whoever reads what a run will be or is."""

from hybridlm.training.parallel import data_places
from hybridlm.training.sections import PretrainConfig


def sharded_over(config: PretrainConfig, processes: int) -> int:
    """Processes that hold one copy of weights, gradients and optimizer state between them; 1: each holds a whole."""
    if processes == 1 or config.parallel.kind == "ddp":
        return 1
    return config.parallel.shard or processes


def arrangement(config: PretrainConfig, processes: int) -> str:
    """Such as "8 processes: fsdp over 8, 4 places that read rows, 2 processes share each sequence". Raises UserError as
    `data_places` does."""
    places = data_places(config, processes)
    if processes == 1:
        return "1 process"
    words = [config.parallel.kind]
    if config.parallel.kind == "fsdp":
        held = sharded_over(config, processes)
        copies = processes // held
        words = [f"fsdp over {held}" + (f", {copies} copies of the model" if copies > 1 else "")]
        words += [] if config.parallel.reshard else ["gathered weights are kept until the backward is over"]
    words.append(f"{places} place{'s' * (places > 1)} that read{'s' * (places == 1)} rows")
    if places < processes:
        words.append(f"{processes // places} processes share each sequence")
    return f"{processes} processes: {', '.join(words)}"
