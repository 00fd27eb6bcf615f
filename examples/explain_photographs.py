"""Explain photographs of yours by a pretrained network, without any training: Grad-CAM beside Expected Grad-CAM.

    python examples/explain_photographs.py cat.jpg coffee.jpg --net mobilenet_v2 --images imagenet/val

Each is explained for the class that the network gives it, against photographs of --images (a folder of class folders,
such as the network was trained on). Writes a sheet, the photographs in rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from comparison import draw_sheet
from photographs import Photograph, UnusableInputError, load, open_rgb

from egcam_lightning import ExpectedGradCAM, Perturbation


def main(argv: Sequence[str] | None = None) -> Path:
    """Explain what the command line names.

    Returns:
        The sheet.

    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--net", default="mobilenet_v2", metavar="NAME", help="of torchvision, timm, or DIR/nets.py")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs to compare with")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="where DIR has no class folders: 'file class-index'"
    )
    parser.add_argument("--layer", default="last", metavar="NAME", help="of Grad-CAM; by default the last")
    parser.add_argument("-o", "--output", type=Path, default=Path("explain_photographs.png"))
    args = parser.parse_args(argv)
    missing = [path for path in args.photographs if not path.is_file()]
    if missing:
        parser.error(f"there is no file {missing[0]}: write paths of photographs")
    try:
        net, others = load(args.net, args.images, args.labels, None)
    except UnusableInputError as error:
        parser.error(str(error))
    chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:8]
    baselines = net.images([others[int(row)] for row in chosen])
    images = net.images([Photograph(path.name, 0, partial(open_rgb, path)) for path in args.photographs])
    plain = ExpectedGradCAM(net.model, args.layer, Perturbation.grad_cam())(images)
    expected = ExpectedGradCAM(net.model)(images, baselines)
    for path, target, gap in zip(args.photographs, plain.target, expected.completeness_gap, strict=True):
        print(f"{path.name}: class {int(target)}, completeness gap {gap:.2f}")
    columns = {
        f"Grad-CAM\n{plain.layer}": plain.attribution,
        f"Expected Grad-CAM\n{expected.layer}": expected.attribution,
    }
    draw_sheet(columns, images, net.normalisation, args.output)
    print(f"written to {args.output}")
    return args.output


if __name__ == "__main__":
    main()
