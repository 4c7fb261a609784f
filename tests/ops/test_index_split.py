"""The scan of finite-state heads over parts of a sequence: states and gradients of the whole, without processes."""

import threading

import pytest
import torch
from index_scans import case

from hybridlm.model.indexmaps_hybridlm import composed
from hybridlm.model.indexscan_hybridlm import index_scan
from hybridlm.model.sequence_hybridlm import SequenceRanks


class Threads(SequenceRanks):
    """Parts that are threads of one process."""

    def __init__(self, rank, size, barrier, table):
        self.group, self.rank, self.size, self.carried = None, rank, size, 0
        self.barrier, self.table = barrier, table

    def gather(self, x):
        self.table[self.rank] = x.clone()
        self.barrier.wait(60)
        everyone = torch.stack(self.table)
        self.barrier.wait(60)
        return everyone


def in_parts(given, grad, lengths):
    """h, states and gradients of theta, as one, and of bias and values, summed."""
    size, ends = len(lengths), torch.tensor(lengths).cumsum(0).tolist()
    barrier, table, found = threading.Barrier(size), [None] * size, [None] * size

    def run(rank):
        mine = slice(ends[rank] - lengths[rank], ends[rank])
        part = {name: given[name] if given[name] is None else given[name][:, mine] for name in ("noise", "reset")}
        leaves = [given["theta"][:, mine].clone(), given["bias"].clone(), given["values"].clone()]
        theta, bias, values = (x.requires_grad_() for x in leaves)
        ranks = Threads(rank, size, barrier, table)
        options = {**part, "bias": bias, "temperature": given["temperature"]}
        with ranks.sharing():
            h, states = index_scan(theta, values, given["initial_state"], **options)
        gradients = torch.autograd.grad(h, [theta, bias, values], grad[:, mine])
        assert ranks.carried == 1
        found[rank] = (h.detach(), states, *gradients)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    *along, bias, values = zip(*found, strict=True)
    return [*(torch.cat(x, 1) for x in along), sum(bias), sum(values)]


@pytest.mark.parametrize("lengths", [[40], [1, 1, 1], [13, 2, 20, 5]])
@pytest.mark.parametrize("flags", [False, True])
def test_parts_are_the_whole(lengths, flags):
    given, grad = case(sum(lengths), flags=flags, noisy=flags)
    given["mask"] = None
    leaves = {name: given[name].clone().requires_grad_() for name in ("theta", "bias", "values")}
    h, states = index_scan(**{**given, **leaves})
    want = [h.detach(), states, *torch.autograd.grad(h, list(leaves.values()), grad)]
    found = in_parts(given, grad, lengths)
    assert torch.equal(found[0], want[0])
    assert torch.equal(found[1], want[1])
    for x, y in zip(found[2:], want[2:], strict=True):
        assert (x - y).abs().max() <= 1e-12 * max(1.0, y.abs().max().item())


def test_a_nan_in_a_gradient_goes_back_to_the_document_start_in_an_earlier_part():
    given, grad = case(24)
    given["reset"], given["mask"] = torch.zeros(3, 24, dtype=torch.bool), None
    given["reset"][:, 10] = True
    grad[0, 20] = float("nan")
    lost = in_parts(given, grad, [8, 8, 8])[2].isnan().any(-1).any(-1)
    assert lost[0, 10:21].all()
    assert lost.sum() == 11 * 2


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 65])
def test_a_composed_map_leads_where_the_steps_lead(length):
    maps = torch.randint(0, 6, (2, length, 3, 6), generator=torch.Generator().manual_seed(length)).to(torch.uint8)
    state = torch.arange(6).expand(2, 3, 6)
    for t in range(length):
        state = maps[:, t].long().gather(-1, state)
    assert torch.equal(composed(maps).long(), state)


def test_what_a_part_cannot_do_is_refused():
    given, _ = case(6)
    with Threads(0, 1, threading.Barrier(1), [None]).sharing():
        with pytest.raises(ValueError, match="has no padding"):
            index_scan(**given)
        with pytest.raises(ValueError, match="the loop over time runs in one process"):
            index_scan(**{**given, "mask": None}, path="reference")
