"""A pass from the middle of a network on gives the whole pass's values, however often it is taken."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from qexp.build import build
from qexp.commands.network import build_network
from qexp.convert import TwoModes
from qexp.lit.continuations import continuations
from qexp.quantizers.base import Site, named_quantizers
from qexp.quantizers.pact import PACT

from ..composing import configured


@torch.no_grad()
def test_each_continuation_is_the_whole_pass() -> None:
    config = configured("model=resnet20")
    net = build_network(config, build(config.dataset)).eval()
    quantizers = [q for _, q in named_quantizers(net) if q.learned()]
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before, whole = images.clone(), net(images)
    reached = []
    for quantizer, run in continuations(net, images, quantizers):
        reached.append(quantizer)
        assert torch.equal(run(), whole)
        alpha = quantizer.learned()["alpha"]
        learned = alpha.clone()
        alpha.fill_(0.2)
        assert torch.equal(run(), net(images))
        alpha.copy_(learned)
        assert torch.equal(run(), whole)
    assert set(reached) == set(quantizers)
    assert len(reached) == len(quantizers) == 19
    assert torch.equal(images, before)


class InPlace(nn.Module):
    """Everything after the first quantizer works in place on what came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (PACT(4, Site(name, "activation"), alpha=1.0) for name in ("first", "second"))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        y = self.first(x)
        x += y
        z = self.relu(x)
        return self.second(z) + x + z


@torch.no_grad()
def test_a_network_that_works_in_place() -> None:
    net = fx.symbolic_trace(InPlace())
    images = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for _, run in continuations(net, images, [net.first, net.second]):
        for _ in range(3):
            assert torch.equal(run(), net(images))


@torch.no_grad()
def test_a_network_of_two_graphs_runs_whole() -> None:
    graph = fx.symbolic_trace(InPlace())
    net = TwoModes(graph, fx.symbolic_trace(graph)).eval()
    images = torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = list(continuations(net, images, [net.first, net.second]))
    assert [module for module, _ in found] == [net.first, net.second]
    assert all(torch.equal(run(), net(images)) for _, run in found)
