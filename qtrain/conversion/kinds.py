"""Which modules hold a product or a lookup, which norms are converted, what each becomes, why some
are left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..layer_state import LayerState, device_of
from ..layers import attention, cells, convolution, recurrent
from ..layers.calls import QConvolutionCall, QLinearCall
from ..layers.embedding import QEmbedding, QEmbeddingBag, left_lookup
from ..layers.linear import QLinear
from ..layers.matmul import Matmul, QMatmul
from ..norms import deviations
from ..norms.module import QNorm, Slots
from ..norms.recipe import NormRecipe
from ..norms.written import QWritten, form_of
from ..products.module import Shapes
from ..products.operations import Linear, Operation
from ..recipe import Recipe
from . import norm_classes
from .norm_classes import CONVERTED, plain_class, torch_kind
from .registered import function_of

_PRODUCTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QLinear,
    nn.Conv1d: convolution.QConv1d,
    nn.Conv2d: convolution.QConv2d,
    nn.Conv3d: convolution.QConv3d,
    nn.ConvTranspose1d: convolution.QConvTranspose1d,
    nn.ConvTranspose2d: convolution.QConvTranspose2d,
    nn.ConvTranspose3d: convolution.QConvTranspose3d,
    Matmul: QMatmul,
    attention.ScaledDotProductAttention: attention.QScaledDotProductAttention,
    nn.MultiheadAttention: attention.QMultiheadAttention,
    nn.RNN: recurrent.QRNN,
    nn.LSTM: recurrent.QLSTM,
    nn.GRU: recurrent.QGRU,
    nn.RNNCell: cells.QRNNCell,
    nn.LSTMCell: cells.QLSTMCell,
    nn.GRUCell: cells.QGRUCell,
    nn.Embedding: QEmbedding,
    nn.EmbeddingBag: QEmbeddingBag,
}
#: the norms that stay as they are
OTHERS = (nn.modules.batchnorm._NormBase, nn.LocalResponseNorm)
#: methods in which a product layer does its work: a subclass that has its own is not ours to guess
_WORK = ("forward", "_conv_forward", "_output_padding", "__call__")


def targets(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that can be converted, or that holds a product and cannot, once."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        known = isinstance(module, tuple(_PRODUCTS)) or is_any_norm(module)
        if known or _holds_weights(module) or is_registered(module):
            yield name, module
            if isinstance(module, nn.MultiheadAttention) and left_type(module) is not None:
                # left whole: its output projection is read directly, not called
                inside.update(id(child) for child in module.modules())


def _holds_weights(module: nn.Module) -> bool:
    """Whether an unknown module holds weights (two axes or more) of its own."""
    parametrized = type(module).__module__.startswith("torch.nn.utils.parametrize")
    parametrization = isinstance(module, nn.utils.parametrize.ParametrizationList)
    own = module.parameters(recurse=False)
    return not parametrized and not parametrization and any(p.dim() >= 2 for p in own)


def plain_type(module: nn.Module) -> type[nn.Module] | None:
    """The torch type whose conversion fits the module, or None."""
    for cls in type(module).__mro__:
        if cls in _PRODUCTS:
            return cls
    return None


def quantized_class(module: nn.Module) -> Any:
    """The class whose forward the converted module gets."""
    plain = plain_type(module)
    assert plain is not None
    return _PRODUCTS[plain]


def products(module: nn.Module) -> dict[str, Shapes]:
    """The products of a module that can be converted: child name -> shapes."""
    found: dict[str, Shapes] = quantized_class(module).products(module)
    return found


def children(module: nn.Module) -> list[str]:
    """The children that hold the state of a layer that is converted, by name."""
    if torch_kind(module) is not None or is_norm_by_name(module):
        return ["state"]
    known = plain_type(module) is not None and not isinstance(module, LazyModuleMixin)
    return list(products(module)) if known and not is_registered(module) else []


def left_type(module: nn.Module) -> str | None:
    """Why a module of this type cannot be converted, or None."""
    plain = plain_type(module)
    if is_registered(module):
        return "its own forward, not the function registered for it; kept in full precision"
    if plain is None:
        if isinstance(module, OTHERS):
            return "no norm that is converted; kept in full precision"
        held = ", ".join(name for name, _ in module.named_parameters(recurse=False))
        return f"no conversion for this type; its own {held} kept in full precision"
    for cls in type(module).__mro__:
        if cls is plain:
            return None
        own = [name for name in _WORK if name in vars(cls)]
        if own and not cls.__module__.startswith("torch.nn.utils.parametrize"):
            return f"a subclass of {plain.__name__} with its own {own[0]}; kept in full precision"
    raise AssertionError(module)


def left(module: nn.Module, recipe: Recipe | None) -> str | None:
    """Why a layer is left as it is, or None where it is converted."""
    if recipe is None:
        return "left by an override"
    if "forward" in vars(module):
        return "its forward was replaced on the object; kept in full precision"
    if isinstance(module, LazyModuleMixin):
        raise ValueError(
            f"model: a {type(module).__name__} has no sizes yet; run one batch through the model, "
            f"then quantize it"
        )
    if torch_kind(module) is not None or is_norm_by_name(module):
        return left_norm(module, recipe.norm)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return left_lookup(module, recipe.lookup) or left_type(module)
    return left_type(module)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a norm that is converted, of a subclass of one, or computes one."""
    if isinstance(module, QNorm) or torch_kind(module) is not None:
        return True
    return is_norm_by_name(module) and can_convert(module)


def is_norm_by_name(module: nn.Module) -> bool:
    """Whether the module is called a norm, and has parameters or buffers of its own or nothing at
    all, but is none of torch's, no product or lookup, nor what norms a weight."""
    if "norm" not in type(module).__name__.lower() or hasattr(module, "right_inverse"):
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    others = *CONVERTED, *OTHERS, *_PRODUCTS, nn.RNNBase, nn.RNNCellBase
    parts = [name for name, _ in module.named_children() if name != "state"]
    return not isinstance(module, others) and (bool(own) or not parts)


def is_any_norm(module: nn.Module) -> bool:
    """Whether the module is a norm of torch's, or is called one."""
    return torch_kind(module) is not None or isinstance(module, OTHERS) or is_norm_by_name(module)


def is_registered(module: nn.Module) -> bool:
    """Whether a function is registered that takes the place of a module's forward; of a norm, which
    has no products, that is no affair of recipes."""
    return function_of(module) is not None and not is_any_norm(module)


def can_convert(module: nn.Module) -> bool:
    """Whether `convert_norm_` takes the module: one of torch's own classes, a subclass that calls
    torch's function of it, or one of no torch class that computes a layer norm or an RMSNorm."""
    lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
    known = torch_kind(module) is not None or is_norm_by_name(module)
    return known and not lazy and not isinstance(norm_classes.following_class(module), str)


def left_norm(module: nn.Module, recipe: NormRecipe | None) -> str | None:
    """Why a norm is left as it is, or None where it is converted."""
    if recipe is None:
        return "norms are left unless asked (norm=)"
    if recipe.is_off:
        return "its norm (l2, nothing quantized) is torch's own, which is kept"
    quantized = norm_classes.following_class(module)
    if isinstance(quantized, str):
        kind = torch_kind(module)
        what = "a norm of no torch class" if kind is None else f"a subclass of {kind.__name__}"
        return f"{what}: {quantized}; kept in full precision"
    return quantized.refusal(module, recipe)


def operation_of(module: nn.Module) -> Operation | None:
    """What each product of a layer computes, where they are alike and known without an input."""
    if isinstance(module, nn.Linear | nn.RNNBase | nn.RNNCellBase):
        return Linear()
    if isinstance(module, nn.modules.conv._ConvNd):
        return convolution.operation_of(module)
    if isinstance(module, QLinearCall | QConvolutionCall):
        return module.operation(module.product.shapes[1])  # type: ignore[arg-type]
    return None


def _quantized_norm(module: nn.Module) -> type[QNorm]:
    found = norm_classes.following_class(module)
    assert not isinstance(found, str)
    return found


def norm_slots(module: nn.Module, recipe: NormRecipe) -> Slots:
    """The quantizers of a norm, converted or not, and the shapes they meet, for its LayerState."""
    return _quantized_norm(module).slots(module, recipe)


def convert_norm_(module: nn.Module, recipe: NormRecipe, state: LayerState | None = None) -> None:
    """Make a norm follow `recipe`, in place; parameters and buffers stay the objects they were;
    `state` (default: a fresh one) becomes its child.  Deviation none stops the scale's training.
    TypeError for another module."""
    if not can_convert(module):
        raise TypeError(
            f"convert_norm_: got {type(module).__name__}, need one of "
            f"{', '.join(cls.__name__ for cls in CONVERTED)}, or what computes one"
        )
    if state is None:
        slots = norm_slots(module, recipe)
        state = LayerState(slots, name="", seed=0, stream=0, device=device_of(module))
    quantized = _quantized_norm(module)
    name: str | None = "weight"
    if issubclass(quantized, QWritten):
        form = form_of(module)
        name = form.scale
        setattr(module, "norm_form", form)  # noqa: B010 (of a class that does not declare it)
    module.__class__ = quantized
    assert isinstance(module, QNorm)
    module.recipe = recipe
    module.state = state.train(module.training)
    scale: object = None if name is None else getattr(module, name)
    if recipe.deviation == deviations.none() and isinstance(scale, nn.Parameter):
        scale.requires_grad_(False)


def follow_norm_(module: nn.Module, recipe: NormRecipe) -> None:
    """Have a norm that was converted follow another recipe, in place: one that is off is the class
    it was again, with its state at rest."""
    module.__class__ = plain_class(module) if recipe.is_off else _quantized_norm(module)
    setattr(module, "recipe", recipe)  # noqa: B010 (of a class that does not declare it)
