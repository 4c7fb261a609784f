"""`card`, `export`, `push` and `convert`: a checkpoint is described and leaves the package, another one comes in."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hybridlm.commands.shared import CHECKPOINT

if TYPE_CHECKING:
    from hybridlm.release.export import Export


def card(options: argparse.Namespace) -> None:
    """write the model card of a checkpoint

    Writes README.md into the checkpoint's folder, with the metadata that the Hugging Face Hub reads: architecture,
    data and licences, training, commands, machine, curves, evaluations, limits, rights, citation. Every number comes
    from the files of the run; what they do not say is left out, or said to be missing. `hybridlm export` takes the card
    along. A card that somebody wrote or changed is not replaced. The picture needs the extra `plot`. The card quotes
    the recipe and the commands, with the paths in them: look it over before you publish it.

    examples:
      hybridlm card runs/demo/run/final
      hybridlm card runs/demo/run/final --name my-account/my-model --license apache-2.0 --overwrite
      hybridlm card runs/demo/run/final --memory scripts/results/memory_suite --out card.md
      hybridlm card runs/big/final --benchmark gpqa_diamond_zeroshot/acc=Idavidrein/gpqa:gpqa_diamond
    """
    from hybridlm.release.model_card.write import CardOptions, write_card

    said = CardOptions(
        name=options.name,
        license=options.license,
        language=[word.strip() for word in options.language.split(",")] if options.language else [],
        memory=options.memory,
        benchmarks=options.benchmark,
    )
    print(f"Written to {write_card(options.checkpoint, options.out, options=said, overwrite=options.overwrite)}")


def card_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("--out", metavar="FILE", help="where to write (default: CHECKPOINT/README.md)")
    add("--overwrite", action="store_true", help="replace a card that somebody wrote or changed, too")
    add("--name", metavar="OWNER/MODEL", help="what the example loads; its last part is the title")
    add("--license", metavar="NAME", help="licence of the weights, as the Hub names it (not checked), e.g. apache-2.0")
    add("--language", metavar="CODE[,CODE]", help="languages of the texts, e.g. en")
    add("--memory", metavar="FOLDER", help="records of memory-suite, for a table of the checkpoint's mixers")
    add(
        "--benchmark",
        action="append",
        default=[],
        metavar="TASK/METRIC=DATASET:TASK_ID",
        help="a result for the page of a benchmark on the Hub, in .eval_results; may be repeated",
    )


def export(options: argparse.Namespace) -> None:
    """write a checkpoint that loads without hybridlm

    Writes a folder with weights, tokenizer and the code of the model. It loads where only torch and the same minor
    release of transformers are installed, with trust_remote_code=True. Fine-tuned heads (classification, question
    answering) are exported as they are. `hybridlm push` uploads the same to the Hugging Face Hub.

    examples:
      hybridlm export runs/demo/run/final my-model
      hybridlm export runs/demo/run/final my-model --overwrite
    """
    from hybridlm.release.export import export_checkpoint

    _print_export(export_checkpoint(options.checkpoint, options.out, overwrite=options.overwrite))


def export_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("out", metavar="OUT", help="the folder to write")
    add("--overwrite", action="store_true", help="replace an earlier export in OUT; a README of your own stays")


def push(options: argparse.Namespace) -> None:
    """upload a checkpoint to the Hugging Face Hub

    Uploads what `hybridlm export` writes, weights, tokenizer, code and card, as one commit to a repository, which is
    made where there is none. The card is that of `hybridlm card` if the checkpoint has it, else a small one; a README
    that somebody wrote, here or there, stays. Weights of an earlier push are removed in the same commit.

    Log in with `hf auth login` first, or set HF_TOKEN, with a token that may write. What breaks off, also by Ctrl-C,
    leaves the repository as it was: the same command goes on, and weights that have arrived are not sent again.

    examples:
      hybridlm push runs/demo/run/final my-account/my-model
      hybridlm push runs/demo/run/final my-account/my-model --private --message "Twice the context"
      hybridlm push runs/demo/run/checkpoints/step-00001000 my-account/my-model --revision step-1000
    """
    from hybridlm.release.push import push_checkpoint

    said = {"private": options.private, "revision": options.revision, "message": options.message}
    _print_export(push_checkpoint(options.checkpoint, options.repository, **said))


def push_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("repository", metavar="OWNER/NAME", help="the repository on the Hub; a new one is made")
    add("--private", action="store_true", help="make a new repository private; refuse one that is public")
    add("--revision", metavar="BRANCH", help="commit to this branch, made from main if it is new (default: main)")
    add("--message", metavar="TEXT", help="of the commit (default: Upload CLASS with its code)")


def _print_export(export: Export) -> None:
    print(f"Done: {export.parameters:,} parameters{', tokenizer' * export.tokenizer}, code.")
    print("Load it with (other releases of transformers are refused):\n")
    print(export.snippet())


def convert(options: argparse.Namespace) -> None:
    """turn a Mamba-2 checkpoint of transformers into one of ours

    Reads a Mamba-2 in transformers' format and writes the same model, with the same logits, as a checkpoint of this
    package: for padding in the middle of a text, packed rows, assisted decoding, and further training in a hybrid.

    examples:
      hybridlm convert mistralai/Mamba-Codestral-7B-v0.1 codestral
      hybridlm convert my_mamba2 converted
    """
    from hybridlm.convert import convert_mamba2

    out = convert_mamba2(options.source, options.out)
    print(f"Checkpoint: {out}")
    print(f"Try:        hybridlm info {out}")


def convert_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help=CHECKPOINT)
    command.add_argument("out", metavar="OUT", help="the folder to write; it must not exist yet")
