"""Where pictures go: one small protocol, one module a logger, files for everyone else.

A sink is found by the type of the logger, by name, so that the loggers of ``lightning.pytorch`` and of
``pytorch_lightning`` are the same to it and none has to be importable. Numbers are not a sink's business: they go
through Lightning's own logging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from egcam_lightning.history.history import History
    from egcam_lightning.history.records import Snapshot
    from egcam_lightning.pictures.draw import Pictures

__all__ = ["Sink", "SinkFactory", "find_sinks", "register_sink"]


class Sink(Protocol):
    """What shows pictures. A sink may raise: whoever calls it turns that into a warning.

    A sink that also has ``alert(title: str, text: str) -> None`` is told when a value crosses a threshold that the
    user set; one that has ``log_audit(record: AuditRecord) -> None`` is shown what an audit found.
    """

    def log_snapshot(self, snapshot: Snapshot, history: History, pictures: Pictures) -> None:
        """Show one snapshot.

        Args:
            snapshot: the newest snapshot.
            history: all snapshots so far, this one the last of them, and the images they look at.
            pictures: the snapshot, drawn.

        """

    def log_page(self, path: Path) -> None:
        """Show the timeline page; a logger that cannot show a page does nothing.

        Args:
            path: the HTML file, complete.

        """


SinkFactory = Callable[[Any, Path, str], Sink]
"""What makes a sink: called with the logger, the run folder and the prefix of the keys."""

_Factory = TypeVar("_Factory", bound=SinkFactory)

_registry: dict[str, SinkFactory | str] = {
    "lightning.pytorch.loggers.wandb.WandbLogger": "egcam_lightning.sinks.wandb:WandbSink",
    "lightning.pytorch.loggers.tensorboard.TensorBoardLogger": "egcam_lightning.sinks.tensorboard:TensorBoardSink",
    "lightning.pytorch.loggers.mlflow.MLFlowLogger": "egcam_lightning.sinks.mlflow:MLflowSink",
    "lightning.pytorch.loggers.comet.CometLogger": "egcam_lightning.sinks.comet:CometSink",
}


def register_sink(logger: type | str) -> Callable[[_Factory], _Factory]:
    """Say how pictures reach a logger of your own; the logger's subclasses are included.

    Args:
        logger: the logger's class, or its qualified name (``"package.module.Class"``) to avoid the import.

    Returns:
        A decorator for a class (or function) that takes the logger, the run folder and the prefix of the keys, and
        gives a :class:`Sink`.

    Raises:
        TypeError: where ``logger`` is neither a class nor a name.

    Example:
        >>> from pathlib import Path
        >>> class MyLogger:
        ...     pass
        >>> @register_sink(MyLogger)
        ... class MySink:
        ...     def __init__(self, logger, run_dir, prefix):
        ...         self.logger, self.prefix = logger, prefix
        ...     def log_snapshot(self, snapshot, history, pictures):
        ...         print(f"{self.prefix}/panels", len(pictures.panels), snapshot.step)
        ...     def log_page(self, path):
        ...         print(path)
        >>> find_sinks([MyLogger()], Path("run"), "egcam")
        [<...MySink object at ...>]

    """
    if not isinstance(logger, type | str):
        raise TypeError(f"register_sink takes a logger's class or its qualified name, got {logger!r}")
    name = logger if isinstance(logger, str) else _name(logger)

    def register(factory: _Factory) -> _Factory:
        _registry[_canonical(name)] = factory
        return factory

    return register


def find_sinks(loggers: Iterable[Any], run_dir: Path, prefix: str) -> list[Sink]:
    """Find a sink for every logger that can show pictures; where none can, they go to PNG files.

    Args:
        loggers: the Trainer's loggers.
        run_dir: the folder of the run, for files.
        prefix: the prefix of the keys.

    Returns:
        At least one sink.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> from lightning.pytorch.loggers.logger import DummyLogger
        >>> find_sinks([CSVLogger("."), DummyLogger()], Path("run"), "egcam")
        [<egcam_lightning.sinks.files.FileSink object at ...>]

    """
    sinks = []
    for logger in loggers:
        # By type, never by hasattr: Lightning's DummyLogger has every attribute.
        names = (_canonical(_name(cls)) for cls in type(logger).__mro__)
        found = next((_registry[name] for name in names if name in _registry), None)
        if found is not None:
            sinks.append(_resolve(found)(logger, run_dir, prefix))
    return sinks or [_resolve("egcam_lightning.sinks.files:FileSink")(None, run_dir, prefix)]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _canonical(name: str) -> str:
    """The same library under its older name."""
    old = "pytorch_lightning."
    return f"lightning.pytorch.{name[len(old) :]}" if name.startswith(old) else name


def _resolve(factory: SinkFactory | str) -> SinkFactory:
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    resolved: SinkFactory = getattr(import_module(module), name)
    return resolved
