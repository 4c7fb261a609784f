"""What a draft model and prompt lookup gain over greedy decoding: python scripts/bench_assisted.py [CHECKPOINT]"""

import argparse
import sys
from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.evaluation.assisted import (
    DRAFT_RECIPE,
    compare,
    deepened,
    held_out_prompts,
    recipe_of,
    repeated,
    table,
    train_draft,
)
from hybridlm.evaluation.loading import load_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Tokens per second of greedy decoding, prompt lookup, and decoding with a small draft model that "
        "is trained on the data of the checkpoint first, and found again the next time."
    )
    parser.add_argument("checkpoint", nargs="?", default="runs/demo/run/final", help="default: the demo's")
    parser.add_argument("--draft", metavar="RUN", help="run folder of the draft (default: `draft` beside the run)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="of the draft's recipe; may be repeated"
    )
    parser.add_argument("--prompts", type=int, default=4, help="texts of each kind (default: 4)")
    parser.add_argument("--prompt-tokens", type=int, default=96, help="length of a prompt (default: 96)")
    parser.add_argument("--new-tokens", type=int, default=96, help="tokens written (default: 96)")
    parser.add_argument("--guesses", type=int, default=5, help="tokens guessed before a verification (default: 5)")
    parser.add_argument(
        "--deeper", type=int, default=1, metavar="N", help="give the target N times its layers, those added being idle"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, of which the median counts (default: 5)")
    options = parser.parse_args()
    try:
        run = Path(options.draft) if options.draft else Path(options.checkpoint).expanduser().parent.parent / "draft"
        prose = held_out_prompts(recipe_of(options.checkpoint), options.prompts, options.prompt_tokens)
        target = deepened(load_checkpoint(options.checkpoint)[0], options.deeper)
        draft, _ = load_checkpoint(train_draft(options.checkpoint, run, [*DRAFT_RECIPE, *options.set]))
        for name, model in (("target", target), ("draft", draft)):
            print(f"{name}: {model.config.pattern}, {model.num_parameters():,} parameters")
        texts = {"novel": prose, "repetitive": repeated(prose)}
        sizes = {"max_new_tokens": options.new_tokens, "guesses": options.guesses, "rounds": options.rounds}
        rows = compare(target, draft, texts, **sizes)
        print(table(rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(row.same for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
