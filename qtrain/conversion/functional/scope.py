"""The forwards in which calls of functions are taken: hooks around each.

A module's own forward is a scope: the products that it computes by functions become layers of the
module.  A converted layer's, a parametrization's, and that of a module an override leaves, is a gap
in the scope around it: what it computes is its own affair.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import _get_current_function_mode, _pop_mode, _push_mode

from ...autograd.recomputation import is_running
from ...copies import take_hooks_off
from .calls import Calls
from .following import Following
from .sites import Sites
from .tracing import never_alone, written


class Scope:
    """One module's; sites None: a gap."""

    def __init__(self, sites: Sites | None) -> None:
        self.sites = sites
        #: a kernel that takes the place of what is in a gap computes no calls
        self.lets_kernels_pass = sites is None
        #: for the compiler, which makes no modes
        self._calls = None if sites is None else Calls(sites)

    def attach_(self, module: nn.Module) -> None:
        """Put it around a module's forward."""
        module.register_forward_pre_hook(self.enter)
        module.register_forward_hook(self.leave, always_call=True)
        if self.sites is not None:
            module.register_load_state_dict_pre_hook(self.sites.load)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Into the module's forward."""
        if torch.compiler.is_compiling():
            written(self._enter_traced)
            return
        frame, around = sys._getframe(1), _local()
        while around and not is_running(around[-1].frame):  # Ctrl-C ended it, and no hook was told
            _leave(around)
        own = self.sites
        _enter(None if own is None else Calls(own, module, frame), around, frame)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Out of it."""
        if torch.compiler.is_compiling():
            written(_leave, _TRACED)
        else:
            _leave(_local())

    def _enter_traced(self) -> None:
        if self._calls is not None:
            self._calls.restart()
        _enter(self._calls, _TRACED, None)


class _Entered(NamedTuple):
    """A forward that runs; around: the calls that it took the place of."""

    calls: Calls | None
    around: Calls | None
    frame: Any


def _enter(calls: Calls | None, entered: list[_Entered], frame: Any) -> None:
    """Into a scope, or a gap, in place of the scope around it."""
    around = None
    if torch._C._len_torch_function_stack():
        if isinstance(_get_current_function_mode(), Calls):
            around = _pop_mode()
    entered.append(_Entered(calls, around, frame))
    if calls is not None:
        calls.learning = torch.is_grad_enabled() or (around is not None and around.learning)
        _push_mode(calls)


def _leave(entered: list[_Entered]) -> None:
    """Out of the innermost, into the scope around it."""
    calls, around, _ = entered.pop()
    if calls is not None:
        _pop_mode()
    if around is not None:
        _push_mode(around)


_TRACED: list[_Entered] = []
_LOCAL = threading.local()


def _local() -> list[_Entered]:
    """The forwards that run in this thread, the innermost last."""
    if not hasattr(_LOCAL, "entered"):
        _LOCAL.entered = []
    found: list[_Entered] = _LOCAL.entered
    return found


never_alone(Scope.enter, Scope.leave, Scope._enter_traced, _enter, _leave, written)


def is_scope(one: object) -> bool:
    """Whether it is a scope or a gap."""
    return isinstance(one, Scope)


def detach_(model: nn.Module) -> None:
    """Take every scope and gap off a model."""
    for module in model.modules():
        take_hooks_off(module, is_scope)
        loading: dict[int, Any] = module._load_state_dict_pre_hooks
        for key, hook in list(loading.items()):
            if isinstance(getattr(hook.hook, "__self__", None), Sites | Following):
                del loading[key]
