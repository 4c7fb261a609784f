"""`certify`: the automaton inside a model that labels letters."""

from __future__ import annotations

import argparse

from hybridlm.commands.shared import CHECKPOINT


def certify(options: argparse.Namespace) -> None:
    """prove that a model follows an automaton at every length, or show the shortest word on which it fails

    Takes a model that was trained on one of the memory suite's formal languages and kept. A layer of nfsm alone,
    without convolution and MLP, is looked at head by head; every other model is followed as a whole: from the state in
    front of a text it takes every letter, from each state that is reached every letter again, until no new state comes.
    Then it is a finite automaton, which is compared with the task's. With bmru or fqbmru in it: which units latch, and
    which letters set, reset and hold them. Numbers are printed, and written as JSON with the whole automaton, over
    those of an earlier call.

    examples:
      hybridlm memory-suite --quick --tasks s3 --mixers nfsm --recipe finite-state --seeds 0 --keep
      hybridlm certify runs/memory-suite/models/s3-quick-nfsm-finite-state-seed0
      hybridlm certify CHECKPOINT --task s5 --limit 1000000 --out s5.json
      hybridlm certify OWNER/MODEL --task s3 --out s3.json
    """
    from hybridlm.evaluation.certificate.certify import certify_checkpoint, task_of
    from hybridlm.evaluation.certificate.report import default_output, render
    from hybridlm.evaluation.loading import locate
    from hybridlm.evaluation.places import check_beside, check_out
    from hybridlm.evaluation.report import write_json

    source = locate(options.checkpoint)
    if options.task is None:
        task_of(source)
    if options.out is None:
        check_beside(source)
    else:
        check_out(options.out)
    limit = {} if options.limit is None else {"limit": options.limit}
    facts = certify_checkpoint(options.checkpoint, task=options.task, **limit)
    place = write_json(options.out or default_output(facts), facts)  # first: a pipe may close after some lines
    print(render(facts))
    print(f"Written to {place}")


def certify_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add("--task", metavar="T", help="the task (default: what a local checkpoint says; needed for one on the Hub)")
    add(
        "--limit",
        type=int,
        metavar="N",
        help="of a model followed as a whole: look at up to N states (default: 100000)",
    )
    add(
        "--out", metavar="JSON", help="where to write (default: below CHECKPOINT/evaluation; needed for one on the Hub)"
    )
