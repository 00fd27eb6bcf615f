"""``egcam audit MODEL``: what one model looks at, and which of its classes a patch alone calls."""

from __future__ import annotations

import argparse
from pathlib import Path

from egcam_lightning.commands.limits import add_limits, enforce, limits_of, values_of
from egcam_lightning.commands.models import add_models, model_of
from egcam_lightning.commands.pages import add_open, show
from egcam_lightning.commands.tables import audit_table, faithfulness_sentence, write_json
from egcam_lightning.replaying.replay import look_at

_NOTES = 3  # that are printed; the JSON has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.add_argument(
        "name", metavar="MODEL", help="a checkpoint; or a file of weights, timm:NAME or torchvision:NAME, with --images"
    )
    add_models(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder for files (audit in the model's folder)")
    add_open(parser)
    add_limits(parser)


def run(arguments: argparse.Namespace) -> int:
    """Audit the model."""
    limits_of(arguments)  # what means nothing is told of before work starts
    model = model_of(arguments, arguments.name)
    folder = arguments.out or (model.folder or Path()) / "audit" / model.name
    looked = look_at(
        [model.moment],
        model.module,
        model.datamodule,
        folder,
        accelerator=arguments.accelerator,
        trust=arguments.trust,
        estimates=True,
        **model.settings,
    )
    values, record = values_of(looked.history), looked.history.audit
    if record is not None:
        print(record.sentence)
        for sentence in (*(finding.sentence for finding in record.findings), *record.notes[:_NOTES]):
            print(sentence)
        if record.faithfulness:
            print(faithfulness_sentence(record.faithfulness))
    write_json(looked.run_dir / "findings.json", {**audit_table(record), "values": values})
    show(looked.page, arguments.open)
    return enforce(arguments, values)
