"""A converted model that was saved comes back converted, and goes on bit for bit, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from qtrain import plain_state_dict, quantize, set_recipe

RANGE: dict[str, Any] = {"bits": 8, "norm": "range"}
WORDS, WIDTH = 16, 8


class Net(nn.Module):
    """Layers, a norm, calls of functions with and without a weight, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.project = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k = self.project(self.norm(x)).chunk(2, -1)
        output: Tensor = self.head(x + torch.softmax(q @ k.mT, -1) @ x @ self.out)
        return output


def ids(seed: int = 0) -> Tensor:
    return torch.randint(WORDS, (2, 5), generator=torch.Generator().manual_seed(seed))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, first: int = 2
) -> dict[str, Tensor]:
    """The state after two steps."""
    optimizer = optimizer or adam(model)
    for step in (first, first + 1):
        optimizer.zero_grad()
        found = model(ids(step))
        logits: Tensor = getattr(found, "logits", found)
        logits.square().mean().backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()  # safetensors sorts them, and layers of calls with them
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


def ran(**settings: Any) -> nn.Module:
    """A model after two steps."""
    model = quantize(Net(), **settings)
    steps(model, first=0)
    return model


def parts(state: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """The state as files of so many entries hold it."""
    names = list(state)
    for at in range(0, len(names), size):
        yield {name: state[name].clone() for name in names[at : at + size]}


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    "settings", [RANGE, {"recipe": "lsq", "example_inputs": ids()}], ids=["int8", "lsq"]
)
def test_a_state_in_several_files_comes_back(settings: dict[str, Any], size: int) -> None:
    model = ran(**settings)
    with torch.device("meta"):
        fresh = quantize(Net(), **{**settings, "example_inputs": None}, seed=5)
    for part in parts(model.state_dict(), size):
        fresh.load_state_dict(part, strict=False, assign=True)
        own = fresh.state_dict()
        for name in part.keys() & dict(fresh.named_parameters()).keys():
            assert own[name].data_ptr() == part[name].data_ptr(), name  # never twice in memory
    fresh.tie_weights()  # type: ignore[operator]
    assert_equal(fresh.state_dict(), model.state_dict())
    assert_equal(steps(fresh), steps(model))


def test_plain_weights_in_several_files_make_a_new_conversion() -> None:
    plain, expected = Net().state_dict(), quantize(Net(), **RANGE)
    with torch.device("meta"):
        fresh = quantize(Net(), **RANGE)
    for part in parts(plain, 1):
        fresh.load_state_dict(part, strict=False, assign=True)
    fresh.tie_weights()  # type: ignore[operator]
    assert_equal(steps(fresh), steps(expected))


def test_a_part_that_never_comes_is_missed() -> None:
    state = ran(**RANGE).state_dict()
    del state["functional.linear0.product.sizes"]
    fresh = quantize(Net(), **RANGE)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*functional\.linear0\.product"):
        fresh.load_state_dict(state)
    with pytest.raises(ValueError, match=r"linear0': a state_dict without its product\.sizes"):
        fresh(ids())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_continues(tmp_path: Path) -> None:
    model = quantize(Net(), **RANGE)
    optimizer = adam(model)
    steps(model, optimizer, first=0)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    distributed.save(states, checkpoint_id=tmp_path, no_dist=True)

    def restored(**settings: Any) -> dict[str, Tensor]:
        fresh = quantize(Net(), **RANGE, seed=5, **settings)
        again = adam(fresh)
        own, other = get_state_dict(fresh, again)
        read = {"model": own, "optimizer": other}
        distributed.load(read, checkpoint_id=tmp_path, no_dist=True)
        set_state_dict(fresh, again, model_state_dict=own, optim_state_dict=other)
        return steps(fresh, again)

    with pytest.raises(ValueError, match=r"functional\.matmul0'.*example_inputs"):
        restored()  # it reads what a model has, and this one has not run
    assert_equal(restored(example_inputs=ids()), steps(model, optimizer))


@pytest.mark.filterwarnings("ignore:qtrain. outside the recipe")
@pytest.mark.parametrize("learning", [True, False])
def test_a_state_of_a_conversion_without_calls_is_refused(learning: bool) -> None:
    state = ran(**RANGE, functional=False).state_dict()
    fresh = quantize(Net(), **RANGE)
    fresh.load_state_dict(state)
    for model in (fresh, copy.deepcopy(fresh)):
        with torch.set_grad_enabled(learning), pytest.raises(ValueError, match="functional=False"):
            model(ids())
    again = quantize(Net(), **RANGE, functional=False)
    again.load_state_dict(state)
    assert "functional" not in again._modules and again(ids()).isfinite().all()


def test_calls_may_begin_with_another_recipe() -> None:
    settings: dict[str, Any] = {"recipe": "fp32", "norm": "range"}
    model, fresh = ran(**settings), quantize(Net(), **settings)
    fresh.load_state_dict(model.state_dict())
    for each in (model, fresh):
        set_recipe(each, "int8")
    assert_equal(steps(fresh), steps(model))


def test_layers_that_a_state_makes_need_the_optimizer() -> None:
    state = ran(recipe="lsq", example_inputs=ids()).state_dict()
    fresh = quantize(Net(), recipe="lsq")
    early = adam(fresh)
    fresh.load_state_dict(state)
    with pytest.raises(ValueError, match=r"nothing trains .* functional\.matmul0: forward input"):
        steps(fresh, early)


@pytest.mark.parametrize("settings", [RANGE, {"recipe": "banner2018"}], ids=["int8", "banner2018"])
def test_safetensors_bring_it_back(settings: dict[str, Any], tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")
    model = ran(**settings)
    files.save_model(model, tmp_path / "model.safetensors")
    fresh = quantize(Net(), **settings, seed=5)
    assert files.load_model(fresh, tmp_path / "model.safetensors") == (set(), [])
    assert_equal(steps(fresh), steps(model))


@pytest.mark.parametrize("shard", ["2KB", "1GB"])
def test_a_pretrained_model_comes_back(shard: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    files = pytest.importorskip("safetensors.torch")
    sizes = {"n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": WORDS, "n_positions": 8}
    drops = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    kind = transformers.GPT2LMHeadModel
    model = quantize(kind(transformers.GPT2Config(**sizes, **drops, **ends)), **RANGE)
    steps(model, first=0)
    model.save_pretrained(tmp_path, max_shard_size=shard)  # type: ignore[operator]
    found = sorted(tmp_path.glob("*.safetensors"))
    assert (len(found) > 1) == (shard == "2KB")

    fresh = quantize(kind(kind.config_class.from_pretrained(tmp_path)), **RANGE, seed=5)
    for path in found:
        fresh.load_state_dict(files.load_file(path), strict=False)
    assert_equal(steps(fresh), steps(model))

    model.save_pretrained(tmp_path / "plain", state_dict=plain_state_dict(model))  # type: ignore[operator]
    back, said = kind.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(said.values())
    assert_equal(back.state_dict(), plain_state_dict(model))
