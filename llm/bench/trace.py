"""Where the time of a training step goes: torch's profiler, and its operators put into a few groups that people know.

An operator that touches a tensor with the vocabulary as one of its dimensions belongs to the head and the loss, in
the forward as in the backward, in any program; that tells them apart without a mark in the code that is measured.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from llm.bench.measure import Watch, take_turns

MATRIX, ATTENTION, HEAD, OPTIMIZER = "matrix products", "attention", "head and loss", "clipping and optimizer"
POINTWISE, CASTS, COMPILED, OTHER = "norms and elementwise", "copies and casts", "compiled kernels", "other operators"
OUTSIDE = "outside operators"   # Python, and the profiler's own cost

PRODUCTS = {"aten::mm", "aten::addmm", "aten::_addmm_activation", "aten::linear", "aten::matmul",
            "aten::mkldnn_linear", "mkldnn::_linear_pointwise", "aten::mkldnn_linear_backward"}
COPIES = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::contiguous", "aten::clone", "aten::cat", "aten::stack"}
LOSS_WORDS = ("log_softmax", "nll_loss", "cross_entropy", "logsumexp")
ATTENTION_WORDS = ("scaled_dot_product", "flash_attention", "bmm", "Bmm")   # the last two where it is written out
OPTIMIZER_WORDS = ("Optimizer.step", "Optimizer.zero_grad", "_foreach_", "linalg_vector_norm", "_fused_adam")
POINTWISE_WORDS = ("norm", "gelu", "silu", "add", "mul", "sub", "div", "neg", "pow", "rsqrt", "sqrt", "square", "mean",
                   "sum", "sigmoid", "tanh", "cos", "sin", "dropout", "bernoulli", "softmax", "where", "fill", "zero_")


class Breakdown(NamedTuple):
    """The seconds of one step."""

    step_s: float                               # without the profiler
    profiled_s: float                           # under it
    groups: dict[str, float]                    # of these, longest first
    operators: list[tuple[str, float, float]]   # name, calls, seconds of its own; longest first
    profiler: profile                           # for `export_chrome_trace`


def profile_step(step: Callable[[], object], *, steps: int, watch: Watch, vocab_size: int) -> Breakdown:
    """Run a few steps under the profiler and group what they did.

    The median of all calls of an operator on inputs of the same shapes stands for each of them, so that a call during
    which the machine did something else does not count.

    Args:
        step: takes one training step.
        steps: how many are recorded.
        watch: tells the time of a step; on CUDA the groups add up the time of kernels, else that of operators.
        vocab_size: V, by which the operators of the head are known; should not be another dimension of the model.
    """
    is_cuda = watch.device.type == "cuda"
    plain = take_turns({"step": step}, turns=steps, warmup=1, watch=watch)["step"].median
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if is_cuda else [])
    with profile(activities=activities, record_shapes=True) as profiler:
        whole = take_turns({"step": step}, turns=steps, warmup=0, watch=watch)["step"].median
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CPU:
            own = event.self_device_time_total if is_cuda else event.self_cpu_time_total   # microseconds
            times[group_of(event, vocab_size), event.name, str(event.input_shapes)].append(own / 1e6)
    groups: dict[str, float] = defaultdict(float)
    operators: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (group, name, _), calls in times.items():
        seconds = per_step(calls, steps)
        groups[group] += seconds
        operators[name][0] += len(calls) / steps
        operators[name][1] += seconds
    groups[OUTSIDE] = max(0.0, whole - sum(groups.values()))
    return Breakdown(
        plain,
        whole,
        dict(sorted(groups.items(), key=lambda item: -item[1])),
        sorted(((name, calls, seconds) for name, (calls, seconds) in operators.items()), key=lambda row: -row[2]),
        profiler,
    )


def per_step(calls: list[float], steps: int) -> float:
    """The seconds of a step that go to calls of one kind, each counted as the median of all.

    Example:
        >>> per_step([1.0, 1.0, 1.0, 9.0], steps=2)   # two calls a step; one of the four was disturbed
        2.0
    """
    return median(calls) * len(calls) / steps


def group_of(event: Any, vocab_size: int) -> str:
    """The group that an operator's own time counts to.

    Args:
        event: a FunctionEvent of the profiler: `name`, `cpu_parent`, `input_shapes`.
        vocab_size: V.
    """
    family = list(_with_ancestors(event))
    names = [one.name for one in family]
    if any(word in name for name in names for word in OPTIMIZER_WORDS):
        return OPTIMIZER
    if any(_touches(one.input_shapes, vocab_size) and "embedding" not in one.name for one in family):
        return HEAD
    if any(word in name for name in names for word in LOSS_WORDS):
        return HEAD
    if any(word in name for name in names for word in ATTENTION_WORDS):
        return ATTENTION
    name = event.name
    if name in PRODUCTS:
        return MATRIX
    if name in COPIES:
        return CASTS
    if "ompile" in name:   # "Torch-Compiled Region", "CompiledFunction", "## Call CompiledFxGraph ##"
        return COMPILED
    if "embedding" not in name and any(word in name.removeprefix("aten::") for word in POINTWISE_WORDS):
        return POINTWISE
    return OTHER


def _with_ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _touches(shapes: Any, size: int) -> bool:
    """Whether one of the inputs has a dimension of this size."""
    return any(isinstance(shape, list) and size in shape for shape in shapes or [])


