"""What `qtrain doctor` says of a machine."""

import pytest

from qtrain import cli
from qtrain.hardware import doctor as module
from qtrain.products.engines.choice import ENGINES
from qtrain.products.engines.float_units import Float32


def test_versions_engines_bits_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in (
        "torch: ",
        "CPU kernels: numba",
        "GPU kernels: triton",
        "float64",
        "int8 gives the",
    ):
        assert word in text
    assert "WRONG" not in text and max(map(len, text.splitlines())) <= 100


def test_a_refused_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(isinstance(engine, Float32) for engine in ENGINES["cpu"])
    monkeypatch.setattr(Float32, "admitted_on", lambda self, device_type: False)
    monkeypatch.setattr(module, "_layer", lambda device: [])
    refused = [one.name for one in ENGINES["cpu"] if not one.admitted_on("cpu")]
    assert "float32" in refused
    assert f"cpu: refused {', '.join(refused)} (no fast units" in " ".join(module.doctor().split())


def test_missing_kernels_are_said() -> None:
    assert "ModuleNotFoundError" in module._kernels("torch", "quantizers.kernels.nowhere")
