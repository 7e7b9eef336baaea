"""Which of a function's forms computes: by the device, in the graph, or torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantizers import Quantizer, int8, kernels
from quantizers.devices.by_device import ByDevice
from quantizers.steps import quantize


def double(x: Tensor, times: int = 2) -> tuple[str, Tensor]:
    return "torch", x * times


def declines_odd(x: Tensor, times: int = 2) -> tuple[str, Tensor] | None:
    return None if times % 2 else ("faster", x * times)


def test_a_form_is_its_devices_and_may_decline() -> None:
    run = ByDevice(double, meta=declines_odd)
    x = torch.ones(3)
    assert run(x)[0] == "torch"  # another device
    assert run(x.to("meta"))[0] == "faster" and run(x.to("meta"), 4)[0] == "faster"
    assert run(x.to("meta"), times=3)[0] == "torch"


@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_a_graph_holds_it_whole_where_a_device_has_a_faster_form() -> None:
    def negated(x: Tensor) -> Tensor:
        return -x

    run = ByDevice(negated, cpu=lambda x: None)
    run.in_graphs("quantizers::test_negated(Tensor x) -> Tensor", lambda x: x.neg())
    called: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        called.extend(str(node.target) for node in graph.graph.nodes if "call" in node.op)
        return graph.forward

    x = torch.arange(3.0)
    assert torch.equal(torch.compile(run, fullgraph=True, backend=backend)(x), -x)
    assert called == ["quantizers.test_negated"]
    assert set(run.graphs) == set(run.forms) == {"cpu"}


def test_another_devices_row_is_one_word() -> None:
    quantizer, x = Quantizer(format=int8), torch.randn(4, 3)
    with kernels.eager():
        want = quantizer(x)
    for form in (quantize.forms["cpu"], lambda *_: None):
        other = ByDevice(quantize.default, cpu=form)
        found = other(x, quantizer, None, None, True)
        assert torch.equal(found.elements, want.elements)
