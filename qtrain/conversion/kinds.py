"""Which modules hold a product, which norms are converted, what each becomes, why some are left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..layer_state import LayerState, device_of
from ..layers import cells, convolution, recurrent
from ..layers.attention import (
    QMultiheadAttention,
    QScaledDotProductAttention,
    ScaledDotProductAttention,
)
from ..layers.linear import QLinear
from ..layers.matmul import Matmul, QMatmul
from ..norms import deviations
from ..norms.batch import QBatchNorm1d, QBatchNorm2d, QBatchNorm3d
from ..norms.module import QNorm, Slots
from ..norms.recipe import NormRecipe
from ..norms.row import QGroupNorm, QLayerNorm, QRMSNorm
from ..norms.sync import QSyncBatchNorm
from ..products.module import Shapes
from ..products.operations import Linear, Operation
from ..recipe import Recipe

_PRODUCTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QLinear,
    nn.Conv1d: convolution.QConv1d,
    nn.Conv2d: convolution.QConv2d,
    nn.Conv3d: convolution.QConv3d,
    nn.ConvTranspose1d: convolution.QConvTranspose1d,
    nn.ConvTranspose2d: convolution.QConvTranspose2d,
    nn.ConvTranspose3d: convolution.QConvTranspose3d,
    Matmul: QMatmul,
    ScaledDotProductAttention: QScaledDotProductAttention,
    nn.MultiheadAttention: QMultiheadAttention,
    nn.RNN: recurrent.QRNN,
    nn.LSTM: recurrent.QLSTM,
    nn.GRU: recurrent.QGRU,
    nn.RNNCell: cells.QRNNCell,
    nn.LSTMCell: cells.QLSTMCell,
    nn.GRUCell: cells.QGRUCell,
}
CONVERTED: dict[type[nn.Module], type[QNorm]] = {
    nn.BatchNorm1d: QBatchNorm1d,
    nn.BatchNorm2d: QBatchNorm2d,
    nn.BatchNorm3d: QBatchNorm3d,
    nn.SyncBatchNorm: QSyncBatchNorm,
    nn.LayerNorm: QLayerNorm,
    nn.RMSNorm: QRMSNorm,
    nn.GroupNorm: QGroupNorm,
}
#: what each was before
_BEFORE = {quantized: plain for plain, quantized in CONVERTED.items()}
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
        if known or _holds_weights(module):
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
    if is_norm(module):
        return ["state"]
    known = plain_type(module) is not None and not isinstance(module, LazyModuleMixin)
    return list(products(module)) if known else []


def left_type(module: nn.Module) -> str | None:
    """Why a module of this type cannot be converted, or None."""
    plain = plain_type(module)
    if plain is None:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return "a lookup, no product; kept in full precision"
        if isinstance(module, OTHERS):
            return "no norm that is converted; kept in full precision"
        if is_norm_by_name(module):
            return "a norm of no torch class; kept in full precision"
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
    if is_norm(module):
        return left_norm(module, recipe.norm)
    return left_type(module)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is of a kind that is converted, or of a subclass of it."""
    return isinstance(module, tuple(CONVERTED))


def is_norm_by_name(module: nn.Module) -> bool:
    """Whether the module is called a norm, and has parameters or buffers of its own, but is none
    of torch's, nor what norms a weight."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    known = is_norm(module) or isinstance(module, OTHERS) or hasattr(module, "right_inverse")
    return bool(own) and not known and "norm" in type(module).__name__.lower()


def is_any_norm(module: nn.Module) -> bool:
    """Whether the module is a norm of torch's, or is called one."""
    return is_norm(module) or isinstance(module, OTHERS) or is_norm_by_name(module)


def can_convert(module: nn.Module) -> bool:
    """Whether `convert_norm_` takes the module: one of torch's own classes, not a subclass."""
    return type(module) in CONVERTED


def left_norm(module: nn.Module, recipe: NormRecipe | None) -> str | None:
    """Why a norm is left as it is, or None where it is converted."""
    if recipe is None:
        return "norms are left unless asked (norm=)"
    if recipe.is_off:
        return "its norm (l2, nothing quantized) is torch's own, which is kept"
    if not can_convert(module):
        kind = next(cls.__name__ for cls in CONVERTED if isinstance(module, cls))
        return f"a subclass of {kind}; kept in full precision"
    return CONVERTED[type(module)].refusal(module, recipe)


def torch_norm(module: nn.Module) -> type[nn.Module]:
    """The torch class of a norm, converted or not."""
    return _BEFORE.get(type(module), type(module))  # type: ignore[arg-type]


def operation_of(module: nn.Module) -> Operation | None:
    """What each product of a layer computes, where they are alike and known without an input."""
    if isinstance(module, nn.Linear | nn.RNNBase | nn.RNNCellBase):
        return Linear()
    if isinstance(module, nn.modules.conv._ConvNd):
        return convolution.operation_of(module)
    return None


def norm_slots(module: nn.Module, recipe: NormRecipe) -> Slots:
    """The quantizers of a norm, converted or not, and the shapes they meet, for its LayerState."""
    return CONVERTED[torch_norm(module)].slots(module, recipe)


def convert_norm_(module: nn.Module, recipe: NormRecipe, state: LayerState | None = None) -> None:
    """Make a torch norm follow `recipe`, in place; parameters and buffers stay the objects they
    were; `state` (default: a fresh one) becomes its child.  Deviation none stops the scale's
    training.  TypeError for another module."""
    if not can_convert(module):
        raise TypeError(
            f"convert_norm_: got {type(module).__name__}, need exactly one of "
            f"{', '.join(cls.__name__ for cls in CONVERTED)}"
        )
    if state is None:
        slots = norm_slots(module, recipe)
        state = LayerState(slots, name="", seed=0, stream=0, device=device_of(module))
    module.__class__ = CONVERTED[type(module)]
    assert isinstance(module, QNorm)
    module.recipe = recipe
    module.state = state.train(module.training)
    if recipe.deviation == deviations.none() and module.weight is not None:
        module.weight.requires_grad_(False)


def follow_norm_(module: nn.Module, recipe: NormRecipe) -> None:
    """Have a norm that was converted follow another recipe, in place: one that is off is torch's
    own again, with its state at rest."""
    plain = torch_norm(module)
    module.__class__ = plain if recipe.is_off else CONVERTED[plain]
    setattr(module, "recipe", recipe)  # noqa: B010 (of a class that does not declare it)
