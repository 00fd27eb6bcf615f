from __future__ import annotations

import random
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric

from egcam_lightning.explain.isolation import isolated
from egcam_lightning.explain.module_state import State


def random_states() -> list[object]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return [
        random.getstate(),
        (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        torch.get_rng_state().tolist(),
    ]


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


class Stubborn(nn.Sequential):
    """Keeps its first part in eval, as people do with a frozen backbone."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(mode)
        self[0].eval()
        return self


class MovingBuffers(nn.Module):
    """Moves a buffer in every way there is, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("in_place", torch.tensor([1.0, -0.0, float("nan")]))
        self.register_buffer("through_data", torch.zeros(3))
        self.register_buffer("reassigned", torch.arange(3))
        self.register_buffer("resized", torch.tensor([]))
        self.register_buffer("grown", torch.ones(2))
        self.register_buffer("moved_elsewhere", torch.ones(2))
        self.register_buffer("nothing", None)
        self.register_buffer("still", torch.randn(3))
        self.register_buffer("still_complex", torch.ones(2, dtype=torch.complex128))
        self.calls = 0
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.in_place += 1
        self.through_data.data[1] = -0.0
        self.reassigned = self.reassigned * 2
        self.resized.resize_(5).fill_(7)
        self.grown.resize_(100_000).fill_(3)
        self.moved_elsewhere.data = torch.full((4,), 9.0)
        self.nothing = torch.ones(1)
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(2), persistent=False)
        self.calls += 1
        self.last = x
        return x * 2


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().clone().cpu().numpy().tobytes()  # a tensor lent to NumPy can no longer be resized


def raises(error: type[BaseException], fails: bool) -> AbstractContextManager:
    """What fails inside comes out: ``isolated`` swallows nothing."""
    return pytest.raises(error) if fails else nullcontext()


@pytest.mark.parametrize("fails", [False, True])
def test_generators_are_seeded_inside_and_put_back(fails: bool) -> None:
    before = random_states()
    drawn = []
    for _ in range(2):
        with raises(KeyboardInterrupt, fails), isolated(nn.Identity(), seed=3):
            drawn.append(draw())
            if fails:
                raise KeyboardInterrupt
        assert random_states() == before
    assert drawn[0] == drawn[1]
    with isolated(nn.Identity(), seed=4):
        assert draw() != drawn[0]


def test_a_seed_for_cuda_is_not_left_waiting() -> None:
    waiting = len(torch.cuda._queued_calls)
    with isolated(nn.Identity()):
        torch.rand(1)
    assert len(torch.cuda._queued_calls) == waiting


@pytest.mark.gpu
def test_generators_of_a_gpu_are_put_back() -> None:
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state_all()
    model = nn.BatchNorm1d(2).cuda()
    with isolated(model):
        first = torch.rand(3, device="cuda")
        model.running_mean.data.add_(1)
    with isolated(model):
        assert torch.equal(first, torch.rand(3, device="cuda"))
    assert all(map(torch.equal, before, torch.cuda.get_rng_state_all()))
    assert model.running_mean.abs().sum().item() == 0


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_are_put_back_one_by_one(fails: bool) -> None:
    model = Stubborn(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2))).train()
    model[1][1].training = False
    flags = [module.training for module in model.modules()]
    with raises(RuntimeError, fails), isolated(model):
        assert not any(module.training for module in model.modules())
        model[1][0].training = True  # whatever the body does
        if fails:
            raise RuntimeError
    assert [module.training for module in model.modules()] == flags
    assert flags == [True, False, True, True, False]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.real("its tensors cannot be resized")
def test_buffers_that_move_in_eval_are_put_back_bit_for_bit(fails: bool) -> None:
    model = nn.Sequential(MovingBuffers(), nn.BatchNorm1d(2))
    for _ in range(2):  # the second time the buffers have been somewhere already
        named = dict(model.named_buffers())
        keys = [list(module._buffers) for module in model.modules()]
        places = {name: (b.data_ptr(), b.shape, b.stride(), b.dtype, bits(b)) for name, b in named.items()}
        with raises(RuntimeError, fails), isolated(model):
            model(torch.randn(4, 2))
            model.train()
            model(torch.randn(4, 2))
            assert bits(model[0].in_place) != places["0.in_place"][-1]
            assert bits(model[0].through_data) != places["0.through_data"][-1]
            assert len(model[0].grown) == 100_000
            assert bits(model[1].running_mean) != places["1.running_mean"][-1]
            if fails:
                raise RuntimeError
        assert [list(module._buffers) for module in model.modules()] == keys
        after = dict(model.named_buffers())
        assert all(after[name] is buffer for name, buffer in named.items())
        # Growing a buffer moves its memory: there the content is what counts.
        for name, (pointer, *rest) in places.items():
            now = after[name]
            assert [now.shape, now.stride(), now.dtype, bits(now)] == rest, name
            assert name in ("0.grown", "0.resized") or now.data_ptr() == pointer, name
        assert model[0].nothing is None
        assert (model[0].calls, model[0].last) == (0, None)
        model[0].in_place.mul_(2)


@pytest.mark.real("its tensors cannot be resized")
def test_buffers_that_did_not_move_are_not_written() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), MovingBuffers())
    still = [*model[1].buffers(), model[2].still]
    versions = [buffer._version for buffer in still]
    with isolated(model):
        model(torch.randn(2, 1, 3, 3))
    assert [buffer._version for buffer in still] == versions


@pytest.mark.real("its tensors cannot be resized")
def test_quantisation_observers_stay_as_they_were() -> None:
    from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

    model = nn.Sequential(nn.Linear(2, 2), FakeQuantize(), FakeQuantize(MovingAveragePerChannelMinMaxObserver))
    before = {name: bits(buffer) for name, buffer in model.named_buffers()}
    with isolated(model):
        model(torch.randn(4, 2))
        assert {name: bits(buffer) for name, buffer in model.named_buffers()} != before
    assert {name: bits(buffer) for name, buffer in model.named_buffers()} == before


def test_gradients_keep_their_identity_and_values() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad
    value = gradient.clone()
    model.bias.grad = None
    with isolated(model):
        x = torch.ones(1, 2, requires_grad=True)
        torch.autograd.grad(model(x).sum(), x)
        model.weight.grad = torch.zeros(2, 2)
        model.bias.grad = torch.ones(2)
    assert model.weight.grad is gradient
    assert torch.equal(gradient, value)
    assert model.bias.grad is None


def test_dropout_that_ignores_the_flag_is_repeatable() -> None:
    class Careless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    model, x, results = Careless(), torch.ones(64), []
    for _ in range(2):
        torch.rand(5)
        with isolated(model):
            results.append(model(x))
    assert torch.equal(*results)
    assert 0 < int((results[0] == 0).sum()) < 64


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=True))


def test_reentrant_checkpointing_allows_autograd_grad_inside_only() -> None:
    model, x = Checkpointed(), torch.randn(2, 3, requires_grad=True)
    original = torch.utils.checkpoint.CheckpointFunction
    expected = torch.autograd.grad(model.head(model.body(x)).sum(), x)[0]
    with pytest.raises(RuntimeError, match="use_reentrant"):
        torch.autograd.grad(model(x).sum(), x)
    with isolated(model):
        assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], expected)
        with pytest.raises(ValueError, match="inner"), isolated(model):
            raise ValueError("inner")
        torch.autograd.grad(model(x).sum(), x)
    assert torch.utils.checkpoint.CheckpointFunction is original
    with pytest.raises(RuntimeError, match="use_reentrant"):
        torch.autograd.grad(model(x).sum(), x)


def compile_submodule(model: nn.Sequential) -> nn.Module:
    model[0] = torch.compile(model[0], backend="aot_eager")
    return model


def compile_in_place(model: nn.Sequential) -> nn.Module:
    model.compile(backend="aot_eager")
    return model


def compile_whole(model: nn.Sequential) -> nn.Module:
    return torch.compile(model, backend="aot_eager")


@pytest.mark.parametrize("compiled", [compile_submodule, compile_in_place, compile_whole])
def test_hooks_fire_on_compiled_modules(compiled: Callable[[nn.Sequential], nn.Module]) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    plain = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 1))
    inner = plain[0][0]
    model, x = compiled(plain), torch.randn(4, 2)
    model(x).sum().backward()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    leaves: list[Tensor] = []

    def leaf(module: nn.Module, args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    with isolated(model):
        handle = inner.register_forward_hook(leaf)
        (gradient,) = torch.autograd.grad(model(x).sum(), leaves[0])
        handle.remove()
    assert gradient.abs().sum() > 0
    model(x)
    assert counters["stats"]["unique_graphs"] == graphs, "compiled code is used again, not made anew"
    with torch.compiler.set_stance("fail_on_recompile"):
        model(x)
    torch._dynamo.reset()


def test_the_stance_of_the_compiler_is_put_back() -> None:
    import torch._dynamo.eval_frame as frame

    def stance() -> str:
        return frame._stance.stance

    with torch.compiler.set_stance("eager_on_recompile"):
        with isolated(nn.Identity()):
            assert stance() == "force_eager"
        with pytest.raises(ValueError, match="stop"), isolated(nn.Identity()):
            raise ValueError("stop")
        assert stance() == "eager_on_recompile"
    assert stance() == "default"


def test_inference_mode_is_left_and_the_gradient_mode_kept() -> None:
    model = nn.Linear(2, 1)
    with torch.inference_mode():
        x = torch.ones(1, 2)
        with isolated(model):
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
            leaf = x.clone().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(gradient, model.weight)
    with torch.no_grad(), isolated(model):
        assert not torch.is_grad_enabled()
    with isolated(model):
        assert torch.is_grad_enabled()


def test_autocast_and_backend_flags_stay() -> None:
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.autocast("cpu", torch.bfloat16), isolated(nn.Identity()):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == flags


def test_nested_isolation_restores_level_by_level() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    outside = random_states()
    with isolated(model, seed=1):
        draw()
        between = random_states()
        model[0].running_mean.fill_(5)
        model[1].training = True
        with isolated(model, seed=2):
            draw()
            assert not model[1].training
            model[0].running_mean.fill_(6)
        assert random_states() == between
        assert model[1].training
        assert model[0].running_mean.tolist() == [5, 5]
    assert random_states() == outside
    assert model[0].running_mean.tolist() == [0, 0]


class Copies(TorchDispatchMode):
    """Counts what is copied, and the largest thing that is made for a moment, in bytes."""

    copied = largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = isinstance(result, Tensor) and not any(
            isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
            for arg in args
        )
        if made and function is torch.ops.aten.clone.default:
            self.copied += result.nbytes
        elif made:
            self.largest = max(self.largest, result.nbytes)
        return result


class Queue(nn.Module):
    """Writes eight columns in every pass, as momentum contrast does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(128, 65536))  # 32 MB
        self.place = 0

    def forward(self, x: Tensor) -> Tensor:
        self.queue[:, self.place : self.place + 8] = 1 + self.place
        self.queue.data[0, -1] = 3 + self.place  # unseen by autograd's count of writes
        self.place += 8
        return x


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.cpu("it counts what lies in the memory of the CPU")
def test_a_large_buffer_is_copied_once_however_deep_isolations_are_nested(moves: bool) -> None:
    model = Queue()
    with Copies() as copies:
        with isolated(model):
            if moves:
                model(torch.ones(1))
            with isolated(model):
                if moves:
                    model(torch.ones(1))
                with isolated(model):
                    model(torch.ones(1))
                    place = model.place
                assert model.place == place - 8
                assert int(model.queue[0].count_nonzero()) == (17 if moves else 0)
                assert int(model.queue[0, -1]) == (11 if moves else 0)
            assert int(model.queue[0].count_nonzero()) == (9 if moves else 0)
        assert int(model.queue[0].count_nonzero()) == 0
    size = model.queue.nbytes
    assert size <= copies.copied <= 1.6 * size  # of a nested one only the pieces that moved: 2 of 8, twice
    assert copies.largest <= size / 4


def test_what_does_not_fit_into_memory_a_second_time_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), Queue()).train()
    before, clone = random_states(), Tensor.clone

    def full(tensor: Tensor) -> Tensor:
        if tensor.numel() > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clone(tensor)

    monkeypatch.setattr(Tensor, "clone", full)
    with pytest.raises(torch.OutOfMemoryError), isolated(model):
        pytest.fail("nothing was isolated")
    assert all(module.training for module in model.modules())
    assert random_states() == before
    monkeypatch.undo()
    with isolated(model):
        model(torch.randn(4, 2))
        # Comparing takes memory too: without any, everything is written.
        monkeypatch.setattr("egcam_lightning.explain.module_state.bits_of", lambda tensor: full(torch.empty(2000)))
    assert int(model[1].queue.count_nonzero()) == 0
    assert model[1].place == 0


class Slotted:
    __slots__ = ("count", "late")

    def __init__(self) -> None:
        self.count = 0


class Owner:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.meters = model, {"a": Slotted()}


class Working:
    """Is changed by threads of its own, as a logger is."""

    def __init__(self) -> None:
        self.lock, self.items = threading.Lock(), [1]


class Rows(torch.utils.data.Dataset[int]):
    def __init__(self) -> None:
        self.cache = {0: 0}


class Holder(nn.Module):
    """Holds everything that people hang on a module."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Any] = [1, [2]]
        self.table: Any = defaultdict(list, {"a": [torch.zeros(2)], "b": (torch.ones(2), {"c": 1})})
        self.ordered = OrderedDict(a=1, b=2)
        self.recent = deque([1, 2], maxlen=2)
        self.names = {"x"}
        self.raw = bytearray(b"ab")
        self.array = np.zeros(3, dtype=np.float16)
        self.backwards = np.arange(4)[::-1]
        self.things = np.array([[1], None], dtype=object)
        self.owner = Owner(self)
        self.metric = MeanMetric()
        self.hidden = [MeanMetric(), nn.BatchNorm1d(2)]
        self.generators = [torch.Generator(), np.random.default_rng(0), random.Random(0), np.random.RandomState(0)]
        self.working, self.rows = Working(), Rows()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        self.items[-1].append(len(self.items))
        self.items.insert(0, x)
        self.table["a"][0].data += 1
        self.table["a"].append(x)
        self.table["b"][0].add_(1)
        self.table["b"][1]["c"] += 1
        self.table["new"].append(1)
        self.ordered.move_to_end("a")
        self.recent.append(len(self.recent) + 1)
        self.names ^= {"x", "y"}
        self.raw += b"c"
        self.array += 1
        self.backwards[1] = np.nan_to_num(9)
        self.things[0].append(2)
        self.things[1] = 3
        self.owner.meters["a"].count += 1
        self.owner.meters["a"].late = 1
        self.owner.name = "new"
        self.metric(x)
        self.hidden[0].update(x)
        self.hidden[1](x)
        torch.rand(2, generator=self.generators[0])
        [draw.random() for draw in (self.generators[1], self.generators[2], self.generators[3])]
        self.working.items.append(1)
        self.rows.cache[1] = 1
        self.weight.data = self.weight.data * 2
        self.weight.note = "seen"
        self.weight.requires_grad_(False)
        self.register_forward_hook(lambda *_: None)
        return x

    def held(self) -> list[Any]:
        meter = self.owner.meters["a"]
        return [
            repr([self.items, dict(self.table), list(self.ordered), self.recent, self.names, self.raw, self.things]),
            (self.array.tolist(), self.backwards.tolist(), self.recent.maxlen),
            (meter.count, hasattr(meter, "late"), hasattr(self.owner, "name")),
            [(float(m.mean_value), m._update_count, m._computed) for m in (self.metric, self.hidden[0])],
            (self.hidden[1].running_mean.tolist(), self.hidden[1].training, self.metric.training),
            self.generators[0].get_state().tolist(),
            (repr(self.generators[1].bit_generator.state), self.generators[2].getstate()),
            repr(self.generators[3].get_state()),
            (self.weight.tolist(), vars(self.weight), self.weight.requires_grad, len(self._forward_hooks)),
        ]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_what_a_module_holds_is_put_back_as_deep_as_it_lies() -> None:
    model, x = Holder(), torch.tensor([[1.0, 3.0], [2.0, 5.0]])
    model(x)
    model.weight.requires_grad_(True)
    before, inner = model.held(), model.items[-1]
    for _ in range(2):
        with isolated(model):
            model(x)
            with isolated(model):
                between = model.held()
                with isolated(model):
                    model(x)
                    assert all(now != then for now, then in zip(model.held(), before, strict=True))
                assert model.held() == between
            assert model.held() == between
        assert model.held() == before
        assert model.items[-1] is inner  # the same objects, not copies of them
    # What has a life of its own is none of ours.
    assert len(model.working.items) == 6
    assert model.rows.cache == {0: 0, 1: 1}


def test_a_list_of_a_million_paths_is_not_looked_into_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Module()
    model.paths = [f"image {i}" for i in range(1000)]
    model.samples = [(path, i) for i, path in enumerate(model.paths)]
    looked_into: list[Any] = []
    keep = State._keep
    monkeypatch.setattr(State, "_keep", lambda self, value: (looked_into.append(value), keep(self, value))[1])
    with isolated(model):
        model.paths.append("another")
        model.samples.clear()
    assert len(looked_into) < 100
    assert (len(model.paths), len(model.samples)) == (1000, 1000)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_attributes_are_put_back_and_the_code_is_not_optimised_by_what_we_run() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.sizes = 0, {"last": 0}
            self.state = torch.zeros(2)
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.sizes["last"] += len(x)
            self.state += 1
            self.mean = 0.9 * self.mean + x.mean(0)
            return x.relu() * self.mean

    model = nn.Sequential(torch.jit.script(Counting()), torch.jit.script(nn.Linear(2, 2)))
    scripted, mean = model[0], model[0].mean
    with isolated(model):
        for size in (1, 2, 3):
            x = torch.ones(size, 2, requires_grad=True)
            assert torch.autograd.grad(model(x).sum(), x)[0].any()
        assert scripted.calls == 3
    assert (scripted.calls, scripted.sizes, scripted.state.tolist(), scripted.mean.tolist()) == (
        0, {"last": 0}, [0, 0], [0, 0],
    )  # fmt: skip
    assert scripted.mean is mean
    assert all(module.training for module in model.modules())
    # Nothing has been recorded that code would be optimised by.
    with pytest.raises(RuntimeError, match="optimized_plan_"):
        scripted.get_debug_state()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_model_is_left_as_it_was() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    mean = model.state_dict()["1.running_mean"].clone()
    with isolated(model):
        assert not any(module.training for module in model.modules())
        model.train()
        model(torch.randn(4, 2))
    assert all(module.training for module in model.modules())
    assert torch.equal(model.state_dict()["1.running_mean"], mean)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e4m3fn, torch.bfloat16, torch.complex64])
def test_buffers_of_any_type_are_compared(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(2).to(dtype))
    model.register_buffer("moved", torch.zeros(2).to(dtype))
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    with isolated(model):
        model.moved.data.copy_(torch.ones(2).to(dtype))
    assert model.moved.float().tolist() == [0, 0] if not dtype.is_complex else model.moved.tolist() == [0j, 0j]


def test_the_first_forward_pass_of_a_sharding_wrapper_is_kept() -> None:
    """Such wrappers convert their buffers and note that they are ready: undoing half of it would break training."""
    wrapper = type("Wrapper", (nn.Module,), {"__module__": "torch.distributed.fsdp.wrapper"})()
    wrapper.ready = False
    wrapper.register_buffer("mean", torch.ones(2))
    with isolated(wrapper):
        wrapper.ready = True
        wrapper.mean.data = wrapper.mean.bfloat16()
    assert wrapper.ready
    assert wrapper.mean.dtype == torch.bfloat16
    assert wrapper.training


def test_weights_that_a_sharded_module_exchanges_stay_and_all_else_is_put_back() -> None:
    """Under FSDP2 it remains the user's module, in a class made for it."""
    base = type("FSDPModule", (), {})
    model = type("FSDPLinear", (base, nn.Linear), {"__module__": "torch.distributed.fsdp"})(2, 2)
    gathered = nn.Parameter(torch.ones(2, 2))
    with isolated(model, weights=True):
        model._parameters["weight"] = gathered
        model.last = torch.ones(1)
        model.eval()
    assert model.weight is gathered
    assert not hasattr(model, "last")
    assert model.training


@pytest.mark.real("not all kinds of tensors exist there")
def test_what_cannot_be_looked_at_is_left_alone_and_a_momentum_encoder_is_put_back():
    class Raises(dict):
        def values(self):
            raise KeyError("lazy")

    class Momentum(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
            self.system, self.lazy = random.SystemRandom(), Raises(a=1)
            self.nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])

        def forward(self, x):
            with torch.no_grad():
                self.key.weight.lerp_(self.query.weight, 0.5)
                self.key.bias.data.mul_(0.9)
            return self.key(x)

    model = Momentum()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with isolated(model, weights=True):
        model(torch.ones(1, 2))
        assert not torch.equal(model.key.weight, before["key.weight"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
