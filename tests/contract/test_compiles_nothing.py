"""It has nothing compiled: a network under ``torch.compile`` has the same graphs with the callback as without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from egcam_lightning.explain.isolation import isolated
from tests.support.fits import Net, fit, make_callback

Backend = Callable[[Any, Any], Callable[..., Any]]


class Silent(Net):
    """Logs nothing: what Lightning does to log is compiled with a step that logs, and again as others log beside it."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


class Part(Silent):
    """One of its two parts is compiled."""

    def __init__(self, part: str, backend: Backend) -> None:
        super().__init__(dropout=0.2, inplace=False)
        setattr(self, part, torch.compile(getattr(self, part), backend=backend))


def in_place(backend: Backend) -> Net:
    net = Silent(dropout=0.2, inplace=False)
    net.compile(backend=backend)
    return net


NETWORKS: dict[str, Callable[[Backend], Any]] = {
    "the module": lambda backend: torch.compile(Silent(dropout=0.2, inplace=False), backend=backend),
    "the module, in place": in_place,
    "the part before the layer": lambda backend: Part("features", backend),
    "the part behind the layer": lambda backend: Part("head", backend),
}


class Counting:
    """A backend that runs graphs as they are, and counts what it compiles and what of it is run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        # Training takes gradients, validation none.
        self.counts["compiled for training" if torch.is_grad_enabled() else "compiled for validation"] += 1

        def run(*args: Any) -> Any:
            self.counts["run"] += 1
            return graph(*args)

        return run


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def graphs(tmp_path: Any, make: Callable[[Backend], Any], *callbacks: Any) -> Counter[str]:
    """What a fit compiles, and what of it is run."""
    torch._dynamo.reset()  # what one fit has compiled must not serve the other
    backend = Counting()
    fit(tmp_path, *callbacks, net=make(backend))
    return backend.counts


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_a_fit_compiles_and_runs_the_graphs_that_it_would_without(name: str, tmp_path: Any) -> None:
    without = graphs(tmp_path, NETWORKS[name])
    callback = make_callback(target_layer="features", metrics="default", every_n_train_steps=1)
    assert graphs(tmp_path, NETWORKS[name], callback) == without
    assert without["compiled for training"] > 0
    assert len(callback.history) > 6  # snapshots between the steps of training, too


@pytest.mark.filterwarnings("ignore")
def test_training_is_compiled_once_where_validation_logs(tmp_path: Any) -> None:
    def make(backend: Backend) -> Any:
        return torch.compile(Net(dropout=0.2, inplace=False), backend=backend)

    without, with_it = graphs(tmp_path, make), graphs(tmp_path, make, make_callback(target_layer="features"))
    assert with_it["compiled for training"] == without["compiled for training"] > 0
    assert with_it["run"] == without["run"]


def test_compiled_code_that_fits_an_input_would_not_call_the_hook_at_a_layer() -> None:
    """Why compiled models are explained eagerly, even where they have code for just such a pass."""
    backend = Counting()
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    model, x = torch.compile(plain, backend=backend), torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        model(x)
    seen: list[nn.Module] = []
    handle = plain[1].register_forward_hook(lambda module, *_: seen.append(module))
    with torch.no_grad(), torch.compiler.set_stance("eager_on_recompile"):
        model(x)
    assert backend.counts["run"] == 2, "no error, no warning: the hook is not part of what is guarded"
    assert not seen
    with isolated(model), torch.no_grad():
        model(x)
    assert seen == [plain[1]]
    assert backend.counts == {"compiled for validation": 1, "run": 2}
    handle.remove()
