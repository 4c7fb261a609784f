"""How often rounding flips a bmru unit between one forward and single steps: python scripts/show_flips.py CHECKPOINT
TEXT"""

import argparse
import sys

import torch

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import read_file
from hybridlm.evaluation.flips import count_flips
from hybridlm.evaluation.loading import load_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Share of bmru states that differ between one forward and single steps."
    )
    parser.add_argument("checkpoint")
    parser.add_argument("text", help="a text file")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of the text to take (default: 2048)")
    options = parser.parse_args()
    try:
        text = read_file(options.text)
        for dtype in ("float32", "bfloat16"):
            model, tokenizer = load_checkpoint(options.checkpoint, dtype=dtype)
            found = count_flips(model, torch.tensor([prompt_ids(tokenizer, text)[: options.tokens]]))
            print(
                f"{found['dtype']:>9}: {found['flipped']:.2e} of {found['states']:,} states differ; "
                f"largest difference of a logit {found['logits']:.1e} of the largest logit"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
