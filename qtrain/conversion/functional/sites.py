"""The layers of a module's calls of functions: made by the first call, or by a state_dict."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal
from zlib import crc32

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...layer_state import device_of, refuse_transforms
from ...layers.calls import QConvolutionCall, QLinearCall, WeightProduct
from ...products.call import located
from ...products.module import QProduct
from ...products.operands import refuse_unscalable
from ...recipe import Recipe
from ...recipes import fp32
from .following import CHILD, Following, Functional
from .functions import LAYERS
from .naming import Stacks, kind_of

#: streams of noise from here on are those of calls: of their names
_STREAMS = 1 << 32
#: why a call stays as it is: no gradient flows through it, or an override leaves it
Aside = Literal["constant", "left"]


class Sites:
    """What is known of the calls in one module's forward.

    name    the module's path, "" of the root
    plain   calls through which no gradient flows, by the function's name and a number: in full
            precision
    taken   the other calls
    box     the layers as attributes, for the compiler
    """

    def __init__(self, owner: nn.Module, name: str, following: Following) -> None:
        self._owner = weakref.ref(owner)
        self.name, self.following = name, following
        self.plain: set[str] = set()
        self.taken: set[str] = set()
        self._open()

    def _open(self) -> None:
        self.left: set[str] = set()
        #: what state_dicts have had of layers whose sizes were in none yet
        self.waiting: dict[str, dict[str, Any]] = {}
        self.aside: Aside | None = None
        self.box = _Box()
        self.stacks, self.seen = Stacks(), ""
        self.number = next(_numbers)
        NUMBERED[self.number] = self

    def __getstate__(self) -> dict[str, Any]:
        """With its module, which a copy has its own of."""
        kept = {"name", "following", "plain", "taken"}
        own = {name: value for name, value in vars(self).items() if name in kept}
        return {**own, "owner": self._owner()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._owner = weakref.ref(state.pop("owner"))
        vars(self).update(state)
        self._open()

    def takes(self, call: str, flows: bool, unknown: bool) -> bool:
        """Whether a call follows the recipe.

        call      the function's name and number
        flows     whether a gradient flows through it
        unknown   whether that cannot be seen, as where none is asked for
        """
        if flows:
            self.taken.add(call)
            self.plain.discard(call)
        elif call not in self.taken and not unknown:
            self.plain.add(call)
        return call not in self.plain

    @contextmanager
    def set_aside(self, why: Aside) -> Iterator[None]:
        """Around a call that stays as it is, for whoever watches its products."""
        self.aside = why
        try:
            yield
        finally:
            self.aside = None

    def slice(self, owner: nn.Module, x: Tensor) -> str:
        """`Stacks.slice`."""
        base = x._base
        return self.stacks.slice(owner, x, base) if isinstance(base, nn.Parameter) else ""

    def layer(self, owner: nn.Module, layer: str, kind: str, sizes: tuple[int, ...]) -> Any:
        """The layer of a call, made where need be; None where it is left or in full precision.

        With the first layer of one of the weights that a parameter stacks come those of the others:
        which of them run first changes from batch to batch.
        """
        found = self._held(owner, layer)
        if found is None and layer not in self.left:
            for name in self.stacks.siblings(owner, layer):
                if self._held(owner, name) is None:
                    self._make(owner, name, kind, sizes)
            found = self._held(owner, layer)
        known = None if found is None else found._modules.get("product")
        if isinstance(known, WeightProduct) and known.shapes[1] != sizes:
            raise ValueError(
                f"layer {self._path(layer)!r}: its weight was (groups, out, in, *kernel) = "
                f"{known.shapes[1]}, and is {sizes}: the forward of {self.name or '(model)'!r} "
                f"calls its functions in another order than before, and calls are told apart by "
                f"their number; make the products modules, or leave these calls by an override, "
                f"{{{self._path(kind) + '*'!r}: None}}, or all by functional=False"
            )
        return found

    @staticmethod
    def _held(owner: nn.Module, layer: str) -> Any:
        held = owner._modules.get(CHILD)
        return None if held is None else held._modules.get(layer)

    def _make(self, owner: nn.Module, layer: str, kind: str, sizes: tuple[int, ...]) -> None:
        recipe = self.following.recipe(self._path(layer))
        if recipe is None or recipe.products_off:
            self.left.add(layer)
            self.following.left[self._path(layer)] = kind
        else:
            refuse_transforms(self._path(layer))
            self._check_loaded(layer)
            self._made(owner, layer, kind, sizes, recipe)

    def _check_loaded(self, layer: str) -> None:
        """ValueError where a layer is to begin anew beside a state that was loaded."""
        if layer in self.waiting:
            raise ValueError(
                f"layer {self._path(layer)!r}: a state_dict without its product.sizes was loaded; "
                f"load the files with the other entries of this layer too"
            )
        if self.following.lacking:
            raise ValueError(
                f"layer {self._path(layer)!r}: the state that was loaded is of a model that ran, "
                f"and has no layer of a call of a function. A loader that reads what a model has "
                f"(torch.distributed.checkpoint) does not see them before the first forward: "
                f"quantize(..., example_inputs=...) makes them at once. A model that was saved "
                f"without them needs functional=False"
            )

    def _path(self, layer: str) -> str:
        return ".".join(part for part in (self.name, CHILD, layer) if part)

    def _made(
        self, owner: nn.Module, name: str, kind: str, sizes: tuple[int, ...], recipe: Recipe
    ) -> nn.Module:
        layer: nn.Module = LAYERS[kind]()
        wanted: Any = layer
        path = self._path(name)
        if recipe.learned and not self.following.is_open:
            raise ValueError(
                f"layer {path!r}: recipe {recipe.name!r} learns parameters, and an optimizer that "
                f"is built before the first forward does not train them; give quantize(..., "
                f"example_inputs=...), which finds the calls of functions, or functional=False"
            )
        of: dict[str, Recipe] = {}
        for key, shapes in wanted.products(sizes).items():
            product = path if key == "product" else f"{path}.{key}"
            made = WeightProduct if sizes else QProduct
            of[key] = recipe if key == "product" else self.following.recipe(product) or fp32()
            try:
                if sizes:
                    refuse_unscalable(wanted.operation(sizes), of[key], shapes)
                child = made(
                    of[key], shapes, name=product, seed=self.following.seed,
                    stream=_STREAMS + crc32(product.encode()), device=device_of(owner),
                )  # fmt: skip
            except (TypeError, ValueError) as error:
                raise located(error, f"layer {product!r}") from error
            if child.keeps_states:
                _check_handed_on(path)
            layer.add_module(key, child.train(owner.training))
        layer.training = owner.training
        if CHILD not in owner._modules:
            if hasattr(owner, CHILD):
                raise ValueError(
                    f"layer {self.name or '(model)'!r}: it has an attribute {CHILD!r}, where the "
                    f"layers of its functions' products belong; rename it, or "
                    f"quantize(..., functional=False)"
                )
            owner.add_module(CHILD, Functional().train(owner.training))
        owner.get_submodule(CHILD).add_module(name, layer)
        self.following.converted[path] = kind
        self.following.overridden |= self.following.choose.overridden(path, recipe, of)
        return layer

    def make_like(self, owner: nn.Module, name: str, other: nn.Module) -> None:
        """The layer that another has, made where it is not there."""
        kind = next(kind for kind, layer in LAYERS.items() if type(other) is layer)
        product = other._modules.get("product")
        sizes = product.shapes[1] if isinstance(product, WeightProduct) else ()
        self.layer(owner, name, kind, sizes)  # type: ignore[arg-type]

    def load(self, module: nn.Module, state_dict: Any, prefix: str, *args: Any) -> None:
        """Make the layers that a state_dict has, before it is loaded; those of a part of a state,
        as in one of several files, once their sizes have come."""
        start = f"{prefix}{CHILD}."
        own: dict[str, dict[str, Any]] = {}
        for key, value in state_dict.items():
            if key.startswith(start):
                own.setdefault(key[len(start) :].partition(".")[0], {})[key] = value
        for name, entries in own.items():
            kind = kind_of(name)
            if kind not in LAYERS or self._held(module, name) is not None:
                continue
            entries = {**self.waiting.pop(name, {}), **entries}
            sizes = entries.get(f"{start}{name}.product.sizes")
            if sizes is None and issubclass(LAYERS[kind], QLinearCall | QConvolutionCall):
                self.waiting[name] = entries
                continue
            state_dict.update(entries)
            shape = () if sizes is None else tuple(int(size) for size in sizes)
            recipe = self.following.recipe(self._path(name)) or fp32()
            with self.following.opened():
                self._made(module, name, kind, shape, recipe)


def _check_handed_on(path: str) -> None:
    """ValueError where DDP hands on no buffers, as the model had none: it looks for those that came
    later with those that it knows."""
    ddp: Any = DistributedDataParallel._get_active_ddp_module()
    if ddp is not None and ddp.forward_sync_buffers and not ddp.modules_buffers:
        raise ValueError(
            f"layer {path!r}: it keeps ranges, and DistributedDataParallel, which was given a "
            f"model without a buffer, does not hand on rank 0's; quantize(..., "
            f"example_inputs=...) makes them before, and DistributedDataParallel(..., "
            f"broadcast_buffers=False) leaves each rank its own"
        )


class _Box:
    """Layers as attributes."""


_numbers = count()
#: every one by its number, a constant for the compiler
NUMBERED: weakref.WeakValueDictionary[int, Sites] = weakref.WeakValueDictionary()
