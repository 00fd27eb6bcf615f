"""A LightningCLI project: all of it is said in ``config.yaml``, the callback too.

    python examples/cli/main.py fit --config examples/cli/config.yaml --data.root PHOTOGRAPHS

PHOTOGRAPHS holds train/ and val/, and in each a folder a class. Afterwards, from what the run has kept:

    PYTHONPATH=examples/cli:examples egcam replay RUN/checkpoints --config RUN/config.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch.cli import LightningCLI


def main(argv: list[str] | None = None) -> LightningCLI:
    """Run what the command line says."""
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]  # where the classes are that the configuration names
    return LightningCLI(args=argv, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
