"""Which forward is counted, and which one a forward that runs inside a backward pass repeats.

Activation checkpointing runs a segment's forward a second time during backward.  The noise of that
second run must be the first one's, and the running ranges those that it found, also when other
forwards happened in between or a layer ran several times.  torch keeps one object per checkpointed
segment; what a layer used in it is written on that object, which lives exactly as long as the
segment's graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor

from quantizers import fold

_ATTRIBUTE = "_qtrain_counts"
_REENTRANT = checkpointing.CheckpointFunction
_FORWARD = _REENTRANT.forward.__code__
_BACKWARD = _REENTRANT.backward.__code__
_FILE = checkpointing.__file__


def in_backward() -> bool:
    """Whether this thread is inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def _segments(until: Any = None, above: int = 2) -> tuple[list[Any], Any | None]:
    """(segments being recorded, innermost first; the segment being recomputed, or None).

    until   a frame: those that began within it alone
    """
    recording: list[Any] = []
    frame = sys._getframe(above)
    while frame is not until and frame is not None:
        code = frame.f_code
        if code.co_filename == _FILE:
            if code is _FORWARD:
                recording.append(frame.f_locals["ctx"])
            elif code is _BACKWARD:
                return recording, frame.f_locals["ctx"]
            elif code.co_name == "unpack_hook" and "frame" in frame.f_locals:
                return recording, frame.f_locals["frame"]
            elif "gen" in frame.f_locals:  # in checkpoint, from torch 2.14 on in a part of it
                running = getattr(frame.f_locals["gen"], "gi_frame", None)
                segment = None if running is None else running.f_locals.get("new_frame")
                if segment is not None:
                    recording.append(segment)
        frame = frame.f_back  # type: ignore[assignment]
    return recording, None


_AROUND = "_qtrain_around"


def repeat_within(frame: Any, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have the checkpointed segments that began within a frame, and are being recorded, run again
    as `around` has it: of their function another one.  Of each segment once."""
    for segment in _segments(frame, 3)[0]:
        if not hasattr(segment, _AROUND):
            setattr(segment, _AROUND, True)
            name = "run_function" if hasattr(segment, "run_function") else "recompute_fn"
            setattr(segment, name, around(getattr(segment, name)))


def is_running(frame: Any) -> bool:
    """Whether the caller runs within this frame."""
    found: Any = sys._getframe(1)
    while found is not None and found is not frame:
        found = found.f_back
    return found is not None


def in_first_pass() -> bool:
    """Whether gradients are off only until a backward pass runs this segment again."""
    return any(map(_is_first_pass, _segments()[0]))


def _is_first_pass(segment: Any) -> bool:
    """Whether a backward pass will run a segment again whose gradients are off meanwhile."""
    return bool(getattr(segment, "next_functions", ()))


@torch.library.custom_op("qtrain::next_count", mutates_args=())
def _next_count(count: Tensor) -> Tensor:
    """count + 1, opaque to the compiler: it would otherwise compute the noise key a second time in
    the backward graph, from the counter that the forward has advanced by then."""
    return count + 1


@_next_count.register_fake
def _(count: Tensor) -> Tensor:
    return torch.empty_like(count)


def needs_gradient(*operands: Tensor | None) -> bool:
    """Whether a gradient will flow through what is computed from these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)


class _Forward(NamedTuple):
    """What a forward of a layer began with: its noise key and ranges."""

    noise: Tensor | None
    ranges: dict[str, Tensor]


class _Forwards:
    """A layer's forwards in a segment, and which of them the backward pass under way repeats next:
    each pass begins with the first, wherever an earlier one stopped."""

    def __init__(self) -> None:
        self.made: list[_Forward] = []
        self._task, self._next = -1, 0

    def repeated(self) -> _Forward | None:
        task = torch._C._current_graph_task_id()
        self._next = self._next + 1 if task == self._task else 1
        self._task = task
        return self.made[self._next - 1] if self._next <= len(self.made) else None


def recall(
    layer: object,
    key: Tensor | None,
    count: Tensor,
    counted: bool,
    ranges: Callable[[], Mapping[str, Tensor]],
) -> tuple[Tensor | None, dict[str, Tensor] | None]:
    """(the noise key of this forward, copies of the ranges it begins with where it repeats an
    earlier one, else None).

    key: the layer's, or None for one without noise; count: the layer's counter, 0-d int64, that is
    folded into it: advanced in place where the forward is `counted`, or is
    the first pass of a reentrant checkpoint, whose gradients are off until its backward; a
    repetition never is.  A repetition outside torch.utils.checkpoint reuses the last count, and
    the ranges as they are.
    ranges: gives what a forward of the layer updates in place.
    """
    if torch.compiler.is_compiling():
        used = count
        if counted:
            used = _next_count(count)
            count.copy_(used)
        return (None if key is None else fold(key, used)), None
    recording, segment = _segments()
    before = None
    if segment is not None:
        forwards = getattr(segment, _ATTRIBUTE, {}).get(id(layer))
        before = None if forwards is None else forwards.repeated()
    repeats = before is not None or in_backward()
    own: Tensor | None = None
    if before is not None:
        own = before.noise
    elif not repeats and (counted or any(map(_is_first_pass, recording))):
        if key is None:
            count.add_(1)
        else:
            own = fold(key, count, advance=True)
    elif key is not None:
        own = fold(key, count)
    if not recording and not repeats:
        return own, None
    begun = ranges() if before is None else before.ranges
    if recording:
        forward = _Forward(own, _copies(begun))
        for inner in recording:
            if not hasattr(inner, _ATTRIBUTE):
                setattr(inner, _ATTRIBUTE, {})
            getattr(inner, _ATTRIBUTE).setdefault(id(layer), _Forwards()).made.append(forward)
    return own, _copies(begun) if repeats else None


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
