"""``python -m egcam_lightning``: the command ``egcam``."""

from egcam_lightning.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main())
