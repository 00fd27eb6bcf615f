"""``egcam compare MODEL OTHER``: where two models look differently on the same images, by more than noise."""

from __future__ import annotations

import argparse
from pathlib import Path

from egcam_lightning.commands.limits import add_limits, enforce, limits_of, values_of
from egcam_lightning.commands.models import add_models, model_of
from egcam_lightning.commands.pages import add_open, show
from egcam_lightning.commands.tables import audit_table, write_json
from egcam_lightning.replaying.comparison import compare_models, default_folder, names_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    kinds = "checkpoints; or files of weights, timm:NAME or torchvision:NAME, with --images"
    parser.add_argument("names", metavar="MODEL", nargs=2, help=kinds)
    add_models(parser)
    parser.add_argument("--other-model", metavar="MODULE:NAME", help="what the second one is of, where not of --model")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder for files (compare in the run's folder)")
    add_open(parser)
    add_limits(parser)
    parser.epilog = "Images, baselines and limits are those of the second one."


def run(arguments: argparse.Namespace) -> int:
    """Compare the models; the limits are of what tells them apart, and of the second one."""
    limits_of(arguments)  # what means nothing is told of before work starts
    a = model_of(arguments, arguments.names[0])
    other = {**vars(arguments), "model": arguments.other_model or arguments.model}
    b = model_of(argparse.Namespace(**other), arguments.names[1])
    paths = [Path(name).resolve() for name in arguments.names]
    names = (a.name, b.name) if a.name != b.name else names_of(paths[0], paths[1])
    folder = arguments.out or default_folder(b.moment, names)
    found = compare_models(
        (a.module, a.moment),
        (b.module, b.moment),
        b.datamodule,
        folder,
        names,
        accelerator=arguments.accelerator,
        trust=arguments.trust,
        **b.settings,
    )
    for sentence in found.sentences:
        print(sentence)
    values = {**values_of(found.b), **found.values}
    audits = {name: audit_table(history.audit) for name, history in (("a", found.a), ("b", found.b))}
    content = {"names": names, "sentences": found.sentences, "images": found.rows(), **audits, "values": values}
    write_json(folder / "compare.json", content)
    show(found.page, arguments.open)
    return enforce(arguments, values)
