"""What a norm becomes: of torch's own classes, of subclasses of them, and of no torch class."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..norms import instance
from ..norms.batch import QBatchNorm1d, QBatchNorm2d, QBatchNorm3d
from ..norms.kept import QKeepsForward
from ..norms.module import QNorm
from ..norms.recognised.form import Called, Written
from ..norms.recognised.probe import ADDED, own_tensors
from ..norms.recognised.recognise import recognised
from ..norms.row import QGroupNorm, QLayerNorm, QRMSNorm
from ..norms.sync import QOwnSyncBatchNorm, QSyncBatchNorm
from ..norms.written import QWrittenLayerNorm, QWrittenRMSNorm
from .joined import before, joined

CONVERTED: dict[type[nn.Module], type[QNorm]] = {
    nn.BatchNorm1d: QBatchNorm1d,
    nn.BatchNorm2d: QBatchNorm2d,
    nn.BatchNorm3d: QBatchNorm3d,
    nn.SyncBatchNorm: QSyncBatchNorm,
    nn.InstanceNorm1d: instance.QInstanceNorm1d,
    nn.InstanceNorm2d: instance.QInstanceNorm2d,
    nn.InstanceNorm3d: instance.QInstanceNorm3d,
    nn.LayerNorm: QLayerNorm,
    nn.RMSNorm: QRMSNorm,
    nn.GroupNorm: QGroupNorm,
}
#: what each was before
_BEFORE = {quantized: plain for plain, quantized in CONVERTED.items()}


def torch_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch's among CONVERTED that a module is of, or None."""
    return next((cls for cls in type(module).__mro__ if cls in CONVERTED), None)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a norm before it was converted."""
    return before(_BEFORE.get(type(module), type(module)))  # type: ignore[arg-type]


def following_class(module: nn.Module) -> type[QNorm] | str:
    """The class with which a norm follows a recipe, or why there is none."""
    own = type(module)
    if issubclass(own, QNorm):
        known = own in _BEFORE or before(own) is not own
        return own if known else "it was made of a converted norm"
    if own in CONVERTED:
        return CONVERTED[own]
    kind = torch_kind(module)
    if kind is not None and own.forward is kind.forward:  # nothing around the norm
        found: Any = Called()
    else:
        found = vars(module).get("norm_form") or recognised(module)
    if isinstance(found, str):
        return found
    if isinstance(found, Written):
        bases = [QWrittenLayerNorm if found.centered else QWrittenRMSNorm, own]
    else:
        assert kind is not None
        bases = [own, QOwnSyncBatchNorm if kind is nn.SyncBatchNorm else CONVERTED[kind]]
        if own.forward is not kind.forward:
            bases.insert(0, QKeepsForward)
    taken = _taken(module, bases)
    if taken:
        return f"it has a {' and a '.join(taken)} of its own, which a converted norm has too"
    made = joined(own, *bases)
    assert issubclass(made, QNorm)
    return made


def _taken(module: nn.Module, bases: list[type[nn.Module]]) -> list[str]:
    """Names of a converted norm that the module, or a class of its own, means something else by."""
    ours = {cls for base in bases for cls in base.__mro__ if issubclass(cls, QNorm)}
    names = {name for cls in ours for name in vars(cls) if not name.startswith("__")}
    names -= set(dir(torch_kind(module) or nn.Module))
    at_rest = "state" in module._modules and "recipe" in vars(module)
    names = names - set(ADDED) if at_rest else names | set(ADDED)
    theirs = [cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.")]
    taken = {*vars(module), *module._modules, *own_tensors(module)}
    return sorted(names & taken.union(*map(vars, theirs)))
