"""What a conversion did, and which products ran outside it."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quantizers import QTensor

from ..copies import copied, detached, random_state_kept, unwrapped
from ..layer_state import LayerState, device_of
from ..layers.linear import QProduct, products_of
from ..names import lineage
from ..products.call import Computed
from ..products.engines.admission import admitted
from ..products.engines.choice import ENGINES
from ..products.operations import KINDS, Kind

_ATTRIBUTE = "_qtrain_conversion"
_PRODUCT_OPS = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear",
    "_addmm_activation", "convolution", "convolution_overrideable", "mkldnn_linear",
    "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "lstm", "gru", "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd", "_grouped_mm", "_scaled_mm", "_int_mm", "_trilinear",
    # under inference_mode the following are not taken apart before they are seen
    "matmul", "einsum", "tensordot", "inner", "bilinear", "_convolution", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "rnn_tanh", "rnn_relu",
    "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell",
)  # fmt: skip


@dataclass
class Conversion:
    """Which layers were converted and which were left, and why; kept on the converted model.

    on_purpose   those left by an override
    overridden   converted layers with a recipe of their own, and that recipe
    norms_left   norms that stay although their recipe asks for another, and why
    """

    recipe: str
    copied: bool
    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    on_purpose: set[str] = field(default_factory=set)
    overridden: dict[str, str] = field(default_factory=dict)
    norms_left: dict[str, str] = field(default_factory=dict)

    def attach(self, model: nn.Module) -> None:
        setattr(model, _ATTRIBUTE, self)

    def is_intended(self, name: str) -> bool:
        """Whether a module, or one it is part of, was left by an override."""
        return any(part in self.on_purpose for part in lineage(name))


@dataclass
class Summary:
    """A conversion, and, where inputs were given, what one forward pass showed.

    converted, left   layer -> its type, and why it was left
    outside           module path -> the products that ran there outside qtrain's Function; None
                      where no inputs were given
    never_ran         converted layers that the forward did not reach; None likewise
    refused           engines that failed their exactness test on this machine
    engines           layer -> product -> the engine that served it, of those that ran; several are
                      joined by " + "; None likewise
    """

    conversion: Conversion
    outside: dict[str, list[str]] | None
    never_ran: list[str] | None
    refused: list[str]
    engines: dict[str, dict[Kind, str]] | None = None

    @property
    def converted(self) -> dict[str, str]:
        return self.conversion.converted

    @property
    def left(self) -> dict[str, str]:
        return self.conversion.left

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(self.converted.values()).items())
        lines = [f"recipe     {self.conversion.recipe}"]
        lines.append(f"converted  {len(self.converted)}: {kinds}")
        for name, recipe in self.conversion.overridden.items():
            lines.append(f"override   {name}: {recipe}")
        groups: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            groups.setdefault(reason, []).append(name)
        lines.append(f"left       {len(self.left)}")
        for reason, names in groups.items():
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            lines.append(f"           {len(names)} x {reason} ({shown})")
        if self.conversion.norms_left:
            names = list(self.conversion.norms_left)
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            lines.append(f"norms      {len(names)} do not follow the norm asked for ({shown})")
        for name, products in (self.outside or {}).items():
            lines.append(f"outside    {name}: {', '.join(products)} ran in full precision")
        if self.never_ran:
            lines.append(f"never ran  {', '.join(self.never_ran)}")
        lines += self._engine_lines()
        for name in self.refused:
            lines.append(f"refused    engine {name}: inexact on this machine, not used")
        lines.append("update     the weight update and the optimizer's state are full precision")
        if self.conversion.copied:
            lines.append(
                "optimizer  this model is a copy: an optimizer built before quantize() trains the "
                "old one; build it from this model's parameters (or use quantize_)"
            )
        return "\n".join(lines)

    def _engine_lines(self) -> list[str]:
        """One line for each engine: of how many layers' products it serves."""
        counts: dict[str, Counter[str]] = {}
        for products in (self.engines or {}).values():
            for kind, engine in products.items():
                counts.setdefault(engine, Counter())[kind] += 1
        return [
            f"engine     {engine}: "
            + ", ".join(f"{kind} of {found[kind]} layers" for kind in KINDS if found[kind])
            for engine, found in counts.items()
        ]


def _is_off(module: nn.Module) -> bool:
    """Whether a layer was converted under a recipe that leaves its products to torch."""
    products = products_of(module)
    return bool(products) and all(product.recipe.products_off for product in products)


class Watch(TorchDispatchMode):
    """Notes every product, by the path of the module it runs in, and every layer that runs."""

    lets_kernels_pass = True  # a forward computes the same bits watched and unwatched

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(module): name for name, module in model.named_modules()}
        self.states = [m for m in model.modules() if isinstance(m, LayerState)]
        self.stack: list[nn.Module] = []
        self.outside: dict[str, list[str]] = {}
        self.ran: set[int] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> Any:
        self._handles = [
            hooks.register_module_forward_pre_hook(self.reached),
            hooks.register_module_forward_hook(self._pop, always_call=True),
        ]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def reached(self, module: nn.Module, args: Any) -> None:
        self.stack.append(module)
        self.ran.add(id(module))

    def _pop(self, module: nn.Module, args: Any, output: Any) -> None:
        while self.stack and self.stack.pop() is not module:
            pass

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._overloadpacket.__name__
        if name in _PRODUCT_OPS or "scaled_dot_product" in name:
            if not any(isinstance(m, QProduct) or _is_off(m) for m in self.stack):
                named = [m for m in self.stack if id(m) in self.names]
                path = (self.names[id(named[-1])] if named else "") or "(model)"
                found = self.outside.setdefault(path, [])
                if name not in found:
                    found.append(name)
        return func(*args, **(kwargs or {}))

    def never_ran(self) -> list[str]:
        """Products that no forward reached."""
        products = [s for s in self.states if isinstance(s, QProduct)]
        return [p.name for p in products if id(p) not in self.ran and not p.recipe.products_off]


class _Engines:
    """The probe of one layer that learns which engines serve it."""

    def __init__(self) -> None:
        self.found: dict[Kind, str] = {}

    def watches(self, training: bool) -> bool:
        return True

    def operand(self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool) -> None:
        pass

    def result(self, product: Computed) -> None:
        pass

    def engine(self, kind: Kind, name: str) -> None:
        known = self.found.setdefault(kind, name).split(" + ")
        if name not in known:
            self.found[kind] += f" + {name}"


def summary(model: nn.Module, *inputs: Any, **kwargs: Any) -> Summary:
    """What `quantize` did to the model; with inputs, also what one pass through it shows.

    The pass, forward and, for an output that has a gradient, backward, runs on a copy: nothing of
    the model changes.  Raises ValueError for a model that was not converted.
    """
    model = unwrapped(model)
    conversion = getattr(model, _ATTRIBUTE, None)
    if conversion is None:
        raise ValueError("summary: this model was not converted by quantize or quantize_")
    device = device_of(model).type
    refused = [engine.name for engine in ENGINES[device] if not admitted(engine, device)]
    if not inputs and not kwargs:
        return Summary(conversion, None, None, refused)
    twin = copied(model)
    forget_watch(twin)
    probes: dict[str, _Engines] = {}
    for product in products_of(twin):
        product.probe = probes.setdefault(product.name, _Engines())
    watch, _ = rehearsed(twin, inputs, kwargs, learning=not torch.is_inference_mode_enabled())
    engines = {name: probe.found for name, probe in probes.items() if probe.found}
    return Summary(conversion, watch.outside, watch.never_ran(), refused, engines)


def rehearsed(
    twin: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], *, learning: bool
) -> tuple[Watch, bool]:
    """One pass through a model, watched: forward, and, where learning, backward from the sum of
    every output that has a gradient.  -> the watch; whether there was a backward pass.

    Run it on a copy: gradients and running statistics of `twin` change.
    """
    with random_state_kept(), torch.set_grad_enabled(learning):
        with Watch(twin) as watch:
            output = twin(*detached(inputs), **detached(kwargs))
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        sums = [leaf.sum() for leaf in leaves if leaf.requires_grad and leaf.is_floating_point()]
        if sums:
            torch.stack([one.double() for one in sums]).sum().backward()
    return watch, bool(sums)


class _FirstForward:
    """Watches a model's first eager forward, warns of what stayed outside, and takes itself off."""

    def __init__(self) -> None:
        self.watch: Watch | None = None

    def before(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and self.watch is None:
            self.watch = Watch(module)
            self.watch.reached(module, args)  # the model itself is past its global hooks
            self.watch.__enter__()

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self.watch is None:
            return
        watch, self.watch = self.watch, None
        watch.__exit__(None, None, None)
        forget_watch(module)
        if output is None:
            return  # the forward failed: its own error says so
        conversion: Conversion = getattr(module, _ATTRIBUTE)
        lines = [
            f"{path}: {', '.join(found)} ran in full precision"
            for path, found in watch.outside.items()
            if not conversion.is_intended(path)
        ]
        lines += [f"{name}: converted, but never ran" for name in watch.never_ran()]
        if lines:
            warnings.warn(
                "qtrain: outside the recipe in the first forward:\n  "
                + "\n  ".join(lines)
                + "\nFunctions such as torch.matmul and F.scaled_dot_product_attention can be "
                "replaced by qtrain.Matmul and qtrain.ScaledDotProductAttention.",
                stacklevel=3,
            )


def watch_first_forward(model: nn.Module) -> None:
    """Name, after the model's first forward, every product that ran outside the recipe."""
    first = _FirstForward()
    model.register_forward_pre_hook(first.before)
    model.register_forward_hook(first.after, always_call=True)


def forget_watch(model: nn.Module) -> None:
    """Take the first-forward watch off a model (or off its copy, whose hooks are copies too)."""
    for table in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(table.items()):
            if isinstance(getattr(hook, "__self__", None), _FirstForward):
                del table[key]
                model._forward_hooks_always_called.pop(key, None)
