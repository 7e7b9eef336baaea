"""Runs of models, data and recipes that are not this package's: by reference, and as values."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from training_cases import assert_same_run, quiet, small, states

import qtrain
from qtrain import Recipe, Schedule, recipes
from qtrain.cli import main
from qtrain.data import Batches, DataError, DatasetSplit
from qtrain.data.given import data_set
from qtrain.training.config import TrainConfig
from qtrain.training.named import training_recipe
from qtrain.training.train import load_data, restored, train
from qtrain.training.trainee import Branch
from quantizers import OFF

#: dropout, a batch norm, a view that channels_last forbids, a buffer that no state_dict has, 5-d
#: weights
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.deep = nn.Conv3d(1, 1, 1)
        self.fc = nn.LazyLinear(num_classes)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls += 1
        x = self.conv(x + self.deep(x[:, None])[:, 0])
        x = self.drop(self.norm(x).relu())
        return self.fc(x.view(len(x), -1)) * (1 + 0.01 * self.calls)

def images(n=64, data_dir=None):
    x = torch.randn(n, 2, 6, 6)
    return [torch.utils.data.TensorDataset(x, x.flatten(1).argmax(1) % 3) for _ in range(2)]

number, text = 3, lambda num_classes: "no module"
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "given_net.py").write_text(NET)
    return str(tmp_path / "given_net.py")


class Linear(nn.Linear):
    def __init__(self, num_classes: int, features: int = 4) -> None:
        super().__init__(features, num_classes)


class Noisy(Dataset[Any]):
    """Inputs drawn from all three global generators."""

    classes = ("a", "b", "c")
    decoded = 0

    def __init__(self, count: int = 48) -> None:
        self.targets = [i % 3 for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        Noisy.decoded += 1
        numbers = [float(torch.rand(())), random.random(), np.random.rand(), float(index)]
        return torch.tensor(numbers), self.targets[index]


def pair(count: int = 32, **changes: Tensor) -> tuple[TensorDataset, TensorDataset]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    given = {"x": x, "y": x.argmax(1), **changes}
    return TensorDataset(*given.values()), TensorDataset(*given.values())


def broken_and_resumed(config: TrainConfig, calls: int, **given: Any) -> None:
    """Stop at one of the steps, as a kill does, and go on from the last checkpoint."""
    real, left = Branch.step, [calls]

    def step(self: Branch, *args: Any, **options: Any) -> dict[str, float]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Branch, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(config, say=quiet, **given)
    train(replace(config, resume=True), say=quiet, **given)


def test_a_network_of_a_file_resumes_bit_for_bit(file: str, tmp_path: Path) -> None:
    own: dict[str, Any] = {"model": f"{file}:Net", "data": f"{file}:images", "checkpoint_every": 3}
    config = small(tmp_path / "a", **own, batch_size=16, name=None)
    assert config.run_name == "int8-Net-images-seed0"
    whole = train(config, say=quiet)
    broken = replace(config, runs_dir=str(tmp_path / "b"))
    broken_and_resumed(broken, 9)
    assert_same_run(whole.folder.path, tmp_path / "b" / config.run_name)
    kept = states(whole.folder.path / "checkpoint.pt")
    assert kept["/quantized/buffers/calls"] == 8
    assert whole.models["quantized"].conv.weight.is_contiguous()  # what x.view() needs
    assert TrainConfig.from_dict(config.to_dict()) == config
    with restored(whole.folder.checkpoint) as (model, inputs, _):
        assert inputs.shape == (16, 2, 6, 6) and model(inputs).shape == (16, 3)


def test_random_transforms_and_workers_resume_bit_for_bit(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": Linear, "data": (Noisy(), Noisy(9))}
    config = small(tmp_path / "a", batch_size=16, checkpoint_every=2)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    whole = train(config, say=quiet, **given)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    assert (state[2] == np.random.get_state()[1]).all()
    broken_and_resumed(replace(config, runs_dir=str(tmp_path / "b"), workers=2), 7, **given)
    assert_same_run(whole.folder.path, tmp_path / "b" / "run")
    stored = whole.config
    assert (stored.model, stored.data) == (f"{__name__}:Linear", "given:Noisy")
    with pytest.raises(ValueError, match=r"train\(config, data=...\)"):
        with restored(whole.folder.checkpoint):
            pass
    with restored(whole.folder.checkpoint, data=given["data"]) as (model, inputs, _):
        assert model(inputs).shape == (16, 3)


def test_samples_are_a_function_of_seed_epoch_and_index() -> None:
    split = DatasetSplit(dataset=Noisy())
    at = np.array([3, 5])
    first = split.read(at, seed=1, epoch=2, augment=True)[0]
    again = split.read(at[::-1].copy(), seed=1, epoch=2, augment=True)[0].flip(0)
    assert torch.equal(first, again)
    for seed, epoch, augment in ((2, 2, True), (1, 3, True), (1, 2, False)):
        other = split.read(at, seed=seed, epoch=epoch, augment=augment)[0]
        assert (other[:, :3] != first[:, :3]).all()
    assert (first[0, :3] != first[1, :3]).all()
    judged = [next(iter(Batches(split=split, batch_size=4, train=False)))[0] for _ in range(2)]
    assert torch.equal(*judged)


def test_targets_are_told_without_reading_every_sample() -> None:
    Noisy.decoded = 0
    split = DatasetSplit(dataset=Subset(Noisy(48), range(1, 40)))
    assert torch.equal(split.truth, torch.arange(1, 40) % 3) and Noisy.decoded < 5
    assert split.num_classes == 3 and split.sizes == {"num_classes": 3}
    lying = Noisy(48)
    lying.targets = lying.targets[::-1]
    shifted = type("Shifted", (Noisy,), {"__getitem__": lambda self, i: (torch.zeros(1), i % 2)})
    assert torch.equal(DatasetSplit(dataset=shifted()).truth, torch.arange(48) % 2)


def test_sizes_are_those_of_the_first_sample() -> None:
    images = DatasetSplit(dataset=TensorDataset(torch.zeros(4, 3, 5, 5), torch.arange(4)))
    assert images.sizes == {"num_classes": 4, "in_channels": 3, "image_size": 5}
    tokens = torch.arange(12).reshape(2, 6)
    text = DatasetSplit(dataset=TensorDataset(tokens, tokens))
    assert text.sizes == {"num_classes": 12, "context": 6}
    inputs, _ = text.read(np.array([1]), seed=0, epoch=0, augment=True)
    assert torch.equal(inputs, tokens[1:]) and inputs.dtype == torch.int64


def test_a_module_is_where_both_branches_start_and_stays_as_it_is(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    config = small(tmp_path, batch_size=32, epochs=1, lr=1e-30)
    result = train(config, model=net, data=pair(), say=quiet)
    assert (result.config.model, result.config.data) == ("given:Sequential", "given:TensorDataset")
    assert not net.training and all(p.grad is None for p in net.parameters())
    for model in result.models.values():
        for name, value in model.named_parameters():
            torch.testing.assert_close(value, before[name], atol=1e-20, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"give it again: train\(config, model=...\)"):
        train(replace(result.config, overwrite=True), data=pair(), say=quiet)


def test_loaders_give_dataset_collate_and_workers(tmp_path: Path) -> None:
    def collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = zip(*samples, strict=True)
        return torch.stack(x) * 2, torch.stack(y)

    train_set, test_set = pair()
    loaders = (
        DataLoader(train_set, batch_size=8, shuffle=True, collate_fn=collate, num_workers=2),
        DataLoader(test_set, batch_size=5, collate_fn=collate),
    )
    found = data_set("given:mine", loaders, batch_size=8)
    assert (found.train.workers, found.test.workers) == (2, 0)
    inputs, targets = found.test.read(np.arange(3), seed=0, epoch=0, augment=False)
    assert torch.equal(inputs, 2 * train_set.tensors[0][:3])
    assert torch.equal(targets, train_set.tensors[1][:3])
    plain = DataLoader(train_set, batch_size=8), DataLoader(test_set)
    assert data_set("x", plain, batch_size=8).train.collate is None


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(4), 0


TRAIN, TEST = pair()
SAMPLER = WeightedRandomSampler([1.0] * 32, 32)
WRONG_DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "stream": (lambda: (Stream(), TEST), "map-style"),
    "streamed": (lambda: (DataLoader(Stream()), TEST), "own"),
    "sampler": (lambda: (DataLoader(TRAIN, 8, sampler=SAMPLER), TEST), "WeightedRandomSampler"),
    "batch": (lambda: (DataLoader(TRAIN, 4), TEST), "batches of 4, and the run of 8"),
    "none": (lambda: (DataLoader(TRAIN, None), TEST), "batch_size=None"),
    "init": (lambda: (DataLoader(TRAIN, 8, worker_init_fn=quiet), TEST), "worker_init_fn"),  # type: ignore[arg-type]
    "dropped": (lambda: (TRAIN, DataLoader(TEST, 5, drop_last=True)), "drop_last"),
    "tensor": (lambda: (torch.zeros(4, 2), TEST), "got a Tensor, need a map-style Dataset"),
    "one": (lambda: (TRAIN,), "tuple of 1, need a qtrain DataSet"),
    "floats": (lambda: pair(y=torch.rand(32)), "cross-entropy of class indices"),
    "int32": (lambda: pair(y=torch.zeros(32, dtype=torch.int32)), "torch.int32.*int64"),
    "columns": (lambda: pair(y=torch.zeros(32, 1, 1).long()), "cross-entropy"),
    "negative": (lambda: pair(y=torch.full((32,), -1)), "target -1 is out of range"),
    "three": (lambda: pair(z=torch.zeros(32)), "tuple of 3, need"),
    "empty": (lambda: pair(0, y=torch.zeros(0).long()), "holds no samples"),
    "shapes": (
        lambda: (TRAIN, [(torch.zeros(n), 0) for n in range(1, 9)]),
        "make no batch .*tensors of one shape",
    ),
}


@pytest.mark.cases(20, 1)
@pytest.mark.parametrize("case", WRONG_DATA)
def test_data_that_cannot_be_kept_is_refused(case: str) -> None:
    make, words = WRONG_DATA[case]
    with pytest.raises((DataError, TypeError), match=words):
        data_set("given:mine", make(), batch_size=8)


WRONG_REFERENCES = {
    "no_such_module_x:Net": "no module 'no_such_module_x'",
    "torch.nn:Linaer": "no 'Linaer'; did you mean 'Linear'",
    "no/such.py:Net": "no file",
    "{file}:number": "is a int, need a function",
    "{file}:text": "returned a str, need a torch.nn.Module",
    "torch.nn:Linear": "needs in_features, out_features",
    "given:Net": "give it again",
    "torch.nn:Identity": r"logits \(2, 2, 6, 6\) for targets \(2,\)",
}


@pytest.mark.cases(20, 1)
@pytest.mark.parametrize("text", WRONG_REFERENCES)
def test_a_wrong_reference_says_what_is_wrong(text: str, file: str, tmp_path: Path) -> None:
    config = small(tmp_path, model=text.format(file=file), data=f"{file}:images")
    with pytest.raises(ValueError, match=WRONG_REFERENCES[text]):
        train(config, say=quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.cases(20, 1)
@pytest.mark.parametrize("model", ["a b:c", "timm:", "x:", ":x", "x:1", "resnet19"])
def test_what_is_no_reference_is_refused_at_once(model: str) -> None:
    with pytest.raises(ValueError, match=r"^model: got .*package.module:function"):
        TrainConfig(recipe="int8", model=model)
    with pytest.raises(ValueError, match=r"^data: got .*package.module:function"):
        TrainConfig(recipe="int8", data=model)


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    config = small(tmp_path)
    with pytest.raises(TypeError, match="belong into TrainConfig"):
        train(config, model="mlp", say=quiet)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="belong into TrainConfig"):
        train(config, data="digits", say=quiet)
    with pytest.raises(ValueError, match="zero_init_residual"):
        TrainConfig(recipe="int8", model="a:b", zero_init_residual=True)
    with pytest.raises(ValueError, match=r"fails on inputs \(2, 4\).*num_classes=4.*mat1 and mat2"):
        train(config, model=nn.Linear(5, 4), data=pair(), say=quiet)
    with pytest.raises(ValueError, match=r"gives logits \(2, 3\).*num_classes=4; need \(2, 4\)"):
        train(config, model=nn.Linear(4, 3), data=pair(), say=quiet)


def test_settings_of_data_reach_its_function_or_are_refused(file: str, tmp_path: Path) -> None:
    given: list[str] = []

    def make(data_dir: str) -> Any:
        given.append(data_dir)
        return pair()

    load_data(small(tmp_path, data_dir="~/x"), make)
    assert given == [str(Path("~/x").expanduser())]
    with pytest.raises(ValueError, match="needs data_dir: set it"):
        load_data(small(tmp_path), make)
    with pytest.raises(ValueError, match=r"image_size: got 8, but data .* takes none"):
        load_data(small(tmp_path, image_size=8), make)
    with pytest.raises(ValueError, match="data_dir: got"):
        load_data(small(tmp_path, data_dir="x"), pair())


def test_logits_of_an_object_are_taken_and_another_output_is_refused(tmp_path: Path) -> None:
    class Wrapped(Linear):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=super().forward(x))

    class Odd(Linear):
        def forward(self, x: Tensor) -> Any:
            return [super().forward(x)]

    config = small(tmp_path, batch_size=16, epochs=1)
    result = train(config, model=Wrapped, data=pair(), say=quiet)
    assert result.config.model == "given:Wrapped" and result.report is not None
    with pytest.raises(ValueError, match=r"output is a list, need .* object with .logits"):
        train(replace(config, overwrite=True), model=Odd, data=pair(), say=quiet)


def test_the_shell_takes_references(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("train", "int8", "--data", f"{file}:images", "--epochs", "1", "--device", "cpu")
    where = ("--batch-size", "32", "--runs-dir", str(tmp_path), "--data-dir", "x")
    assert main([*run, *where, "--model", f"{file}:Net"]) == 0
    checkpoint = tmp_path / "int8-Net-images-seed0" / "checkpoint.pt"
    assert main(["inspect", str(checkpoint), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main([*run, *where, "--model", f"{file}:Nte"]) == 2
    assert "did you mean 'Net'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::quantizers.scales.clipping.ClippingScaleWarning")
@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_kept_as_text_exactly(name: str) -> None:
    recipe = recipes.get(name)
    for made in (recipe, replace(recipe, name="mine"), replace(recipe, norm=recipes.int8().norm)):
        config = TrainConfig(recipe=made)
        assert config.quantization() == made and isinstance(config.recipe, str)
        assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig(recipe=recipe).recipe == name


def test_a_schedule_is_a_recipe_and_what_it_switches_to(tmp_path: Path) -> None:
    mine = replace(recipes.int8(4), name="mine")
    for given in ({0: "int8", 500: mine}, {0.0: mine, 1 / 3: "bf16", 0.9: "fp32"}):
        schedule = Schedule(given)
        config = training_recipe(schedule)
        assert config.quantizations() == schedule and config == TrainConfig(recipe=schedule)
        assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="beside a Schedule"):
        TrainConfig(recipe=schedule, switch=("0.5:bf16",))


@dataclass(frozen=True)
class Own:
    def __call__(self, x: Any, *, state: Any, key: Any, training: bool) -> Any:
        return OFF(x, state=state, key=key, training=training)


def test_a_recipe_without_a_text_is_refused() -> None:
    recipe = Recipe(name="mine", forward=qtrain.Forward(input=Own()))
    with pytest.raises(ValueError, match="holds no code"):
        TrainConfig(recipe=recipe)
