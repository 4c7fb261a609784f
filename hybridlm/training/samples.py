"""Text written during a run, at epsilon = 0, without touching the random numbers of the training."""

from typing import Any

import torch

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.training.parallel import whole_sequences
from hybridlm.training.random_state import kept_random_state
from hybridlm.training.sections import SamplesConfig
from hybridlm.training.sharding import is_sharded
from hybridlm.training.validation import evaluating


def write_samples(model: Any, tokenizer: Any, config: SamplesConfig, seed: int) -> list[str]:
    """One text for each prompt, prompt included: a pure function of weights, prompts and `seed`.

    model: unwrapped HybridLMForCausalLM; its mode, its epsilon and who shares its sequences are as before afterwards. A
    sharded one writes on all processes alike, and each goes on until all have ended.
    """
    texts = []
    choice = (
        {"do_sample": True, "temperature": config.temperature, "top_k": 0}
        if config.temperature > 0
        else {"do_sample": False}
    )
    with evaluating(model), whole_sequences(model), torch.no_grad(), kept_random_state(model.device):
        torch.manual_seed(seed)
        for prompt in config.prompts:
            ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=config.max_new_tokens,
                pad_token_id=tokenizer.eos_token_id,
                synced_gpus=is_sharded(model),
                **choice,
            )
            texts.append(tokenizer.decode(written[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return texts
