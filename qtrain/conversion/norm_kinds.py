"""Which norms of torch are converted, and how."""

from __future__ import annotations

from torch import nn

from ..layer_state import LayerState, device_of
from ..norms import deviations
from ..norms.batch import QBatchNorm1d, QBatchNorm2d, QBatchNorm3d
from ..norms.module import QNorm, Slots
from ..norms.recipe import NormRecipe
from ..norms.row import QGroupNorm, QLayerNorm, QRMSNorm
from ..norms.sync import QSyncBatchNorm

CONVERTED: dict[type[nn.Module], type[QNorm]] = {
    nn.BatchNorm1d: QBatchNorm1d,
    nn.BatchNorm2d: QBatchNorm2d,
    nn.BatchNorm3d: QBatchNorm3d,
    nn.SyncBatchNorm: QSyncBatchNorm,
    nn.LayerNorm: QLayerNorm,
    nn.RMSNorm: QRMSNorm,
    nn.GroupNorm: QGroupNorm,
}
#: the norms that stay as they are
OTHERS = (nn.modules.batchnorm._NormBase, nn.LocalResponseNorm)


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


def norm_slots(module: nn.Module, recipe: NormRecipe) -> Slots:
    """The quantizers of a norm and the shapes they meet, for its LayerState."""
    return CONVERTED[type(module)].slots(module, recipe)


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
