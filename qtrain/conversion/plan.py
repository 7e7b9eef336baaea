"""What a conversion is going to do to a model: planned and built first, then done."""

from __future__ import annotations

from torch import nn

from ..recipe import Recipe
from .functional.attach import attach_, follows_by_calls, may_call
from .functional.following import CHILD, Following
from .functional.unmatched import check_names
from .kinds import (
    children,
    is_any_norm,
    is_norm,
    is_registered,
    left,
    plain_type,
    targets,
)
from .overrides import Asked, Chooser, check_attention
from .record import Conversion
from .swap import built, fuse_sequentials_, swap_
from .unfollowed import (
    names_groups_alone,
    refuse_uncovered,
    warn_of_groups,
    warn_of_norms,
    warn_of_sums,
)
from .untrained import watch_learned
from .watch import watch_first_forward


class Plan:
    """What `quantize_` is going to do to a model, all of it built, none of it done.

    work    the layers to convert, each with its recipe
    """

    def __init__(self, model: nn.Module, asked: Asked, seed: int, functional: bool) -> None:
        self._model, self._asked, self._seed = model, asked, seed
        choose = Chooser(asked)
        self._functional = Following(choose, seed) if functional else None
        plan = [(name, module, choose(name)) for name, module in targets(model)]
        each = [choose.of_children(name, own, children(module)) for name, module, own in plan]
        choose.check_all_used(later=f".{CHILD}." if functional else "")
        if functional:
            check_names(model, choose)
        check_attention(model, {name: own for name, _, own in plan})
        self.work: list[tuple[str, nn.Module, dict[str, Recipe]]] = []
        self._left: dict[str, str] = {}
        self._on_purpose: set[str] = set()
        self._overridden: dict[str, str] = {}
        self._norms_left: dict[str, str] = {}
        within: dict[str, str] = {}  # what is left and follows in no call, and its products
        for (name, module, own), recipes in zip(plan, each, strict=True):
            shown, reason = name or "(model)", left(module, own)
            if functional and own and is_registered(module):
                self._overridden |= choose.overridden(name, own, {})
                continue  # its calls follow
            by_calls = functional and own is not None and follows_by_calls(module)
            if by_calls and reason:
                reason = reason.replace("kept in full precision", "left to its forward's calls")
            if own is None or reason is not None:
                self._left[shown] = f"{type(module).__name__}: {reason}"
                within |= {f"{name}.{key}".lstrip("."): f"{shown}: {reason}" for key in recipes}
                if not by_calls:
                    within[shown] = self._left[shown]
                if own is None:
                    self._on_purpose.add(shown)
                elif own.norm is not None and not own.norm.is_off and is_any_norm(module):
                    self._norms_left[shown] = self._left[shown]
                continue
            self.work.append((name, module, recipes))
            self._overridden |= choose.overridden(name, own, recipes)
        choose.check_all_honoured(within)
        self._norms = sum(is_norm(module) for _, module, _ in self.work)
        if asked.norm is not None and not self._norms:
            refuse_uncovered(model, asked.norm, plan, self._norms_left)
        calls = functional and any(
            may_call(module) and choose.recipe(name) is not None
            for name, module in model.named_modules()
        )
        if not self.work and not calls:
            raise ValueError(
                f"model: {type(model).__name__} has nothing to convert: no linear, convolution, "
                f"recurrent, attention or (with norm=) norm layer outside the overrides"
                + "".join(f"\n  left {name}: {reason}" for name, reason in self._left.items())
            )
        self._built = built(model, self.work, seed)

    def add(self, other: Plan) -> None:
        """Convert the layers that another plan does, too: its norms, or its lookups."""
        mine = {name for name, *_ in self.work}
        new = [entry for entry in other.work if entry[0] not in mine]
        if new:
            places = {name: place for place, (name, _) in enumerate(targets(self._model))}
            self.work = sorted(self.work + new, key=lambda entry: places[entry[0]])
            self._built = built(self._model, self.work, self._seed)
        self._norms_left |= other._norms_left
        for name, *_ in new:
            self._left.pop(name or "(model)", None)
            self._norms_left.pop(name or "(model)", None)
        self._norms = sum(is_norm(module) for _, module, _ in self.work)

    def convert_(self, *, copied: bool, level: int) -> None:
        """Do it."""
        model, work = self._model, self.work
        ungrouped = [  # layers with a weight that has a scale per group, and one group
            name or "(model)"
            for (name, _, _), gained in zip(work, self._built, strict=True)
            if names_groups_alone(gained.values())
        ]
        kinds = {n or "(model)": (plain_type(m) or type(m)).__name__ for n, m, _ in work}
        swap_(model, work, self._built)
        record = Conversion(
            asked=self._asked, copied=copied, converted=kinds, left=self._left,
            on_purpose=self._on_purpose, overridden=self._overridden, norms_left=self._norms_left,
            functional=self._functional,
        )  # fmt: skip
        if self._functional is not None:
            self._functional.converted = record.converted
            self._functional.overridden = record.overridden
            attach_(model, self._functional)
        fuse_sequentials_(model)
        record.attach(model)
        watch_first_forward(model)
        watch_learned(model)
        if self._functional is not None:  # a state_dict makes layers of calls, which may learn
            model.register_load_state_dict_post_hook(_loaded)
        warn_of_norms(model, self._norms, self._norms_left, level + 1)
        warn_of_groups(ungrouped, level + 1)
        warn_of_sums((own for _, _, recipes in work for own in recipes.values()), level + 1)


def _loaded(model: nn.Module, keys: object) -> None:
    watch_learned(model)
