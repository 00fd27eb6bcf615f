"""The perturbation distribution: one family that has Grad-CAM and its relatives as special cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Space = Literal["activation", "input"]
Baseline = Literal["data", "zeros", "none"]
Weighting = Literal["elementwise", "channel", "gradcam++", "xgradcam", "layercam", "rectified", "eigen", "optimal"]


# What a weighting of the gradient at the image is called in the field.
_NAMES = {
    "elementwise": "HiResCAM",
    "channel": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "xgradcam": "XGrad-CAM",
    "layercam": "LayerCAM",
    "rectified": "rectified Grad-CAM",
    "eigen": "Eigen-Grad-CAM",
    "optimal": "optimal weights",
}


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise a ``ValueError`` that names the choices, unless ``value`` is one of the ``Literal`` ``choices``."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"Expected `{name}` to be one of {allowed}, but got {value!r}.")


@dataclass(frozen=True)
class Perturbation:
    """The distribution of the points at which gradients are taken: a baseline, a place on a path, a noise.

    A draw is ``(x', t, eps)``. Its point lies on the straight path from the baseline ``x'`` to the image, at ``t``,
    moved by the noise ``eps``. Together with a weighting (how a gradient becomes a map), this family holds Grad-CAM,
    HiResCAM, SmoothGrad-CAM, Integrated Grad-CAM and Expected Grad-CAM (Buono et al., TMLR 2026); the class methods
    name them.

    Args:
        space: where the path runs. ``"activation"``: between the layer's activations, ``A' + t (A - A')``;
            ``"input"``: between the images, ``g(x' + t (x - x'))``.
        baseline: ``"data"``: the images handed over as baselines; ``"zeros"``: the all-zero model input;
            ``"none"``: no baseline, the activation itself is weighted (only with ``interval=(1, 1)``).
        interval: the places ``t`` are uniform on it; ``(1, 1)`` is the image itself, no path. Only ``(0, 1)`` is
            complete; moving it towards 1 gives simpler maps.
        noise: standard deviation of Gaussian noise around the point, in units of the standard deviation over
            positions, of each image and channel.
        weighting: how a gradient ``G`` and the difference ``D = A - A'`` become a map. ``"elementwise"``:
            ``sum_k G_k * D_k``, which is complete; ``"channel"``: ``sum_k mean(G_k) * D_k``, Grad-CAM's pooling;
            ``"gradcam++"``, ``"xgradcam"``, ``"layercam"``, ``"rectified"`` (an element-wise ReLU) and ``"eigen"``
            (Eigen-Grad-CAM): those of the methods built on it, see :mod:`egcam_lightning.explain.weightings`;
            ``"optimal"``: weights of channels that predict best what the draws' own perturbations do to the score,
            which needs a path or noise. All but the first leave a completeness gap, which is reported as it is.

    Raises:
        ValueError: for a name that is none of the choices, an interval that is turned round or leaves [0, 1],
            a negative noise, ``baseline="none"`` with a path, or ``weighting="optimal"`` without perturbations.

    Example:
        >>> Perturbation()
        Perturbation(space='activation', baseline='data', interval=(0.0, 1.0), noise=0.0, weighting='elementwise')
        >>> Perturbation.grad_cam().weighting
        'channel'

    """

    space: Space = "activation"
    baseline: Baseline = "data"
    interval: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.0
    weighting: Weighting = "elementwise"

    def __post_init__(self) -> None:
        check_choice("space", self.space, Space)
        check_choice("baseline", self.baseline, Baseline)
        check_choice("weighting", self.weighting, Weighting)
        try:
            low, high = (float(t) for t in self.interval)
        except (TypeError, ValueError):
            raise ValueError(f"Expected `interval` to be two numbers (low, high), but got {self.interval!r}.") from None
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                f"Expected `interval` to be (low, high) with 0 <= low <= high <= 1, but got {self.interval!r}."
                + (f" Write ({high:g}, {low:g})." if 0.0 <= high < low <= 1.0 else "")
            )
        if not 0.0 <= self.noise < float("inf"):
            raise ValueError(f"Expected `noise` to be finite and not negative, but got {self.noise!r}.")
        if self.baseline == "none" and (low, high) != (1.0, 1.0):
            raise ValueError(
                f"Without a baseline there is no path: expected `interval=(1, 1)` with `baseline='none'`, but got "
                f"{self.interval!r}. Write baseline='zeros' or baseline='data' for a path."
            )
        if self.weighting == "optimal" and (low, high) == (1.0, 1.0) and not self.noise:
            raise ValueError(
                "Expected `interval` or `noise` to perturb the image with `weighting='optimal'`, which learns from "
                "what perturbations do to the score, but got the image itself, `interval=(1, 1)`. Write "
                "Perturbation.expected(), or another weighting."
            )
        object.__setattr__(self, "interval", (low, high))

    @property
    def name(self) -> str:
        """What the method is called: by its gradient, unless that is the one at the image, and its weighting.

        Example:
            >>> Perturbation().name, Perturbation.grad_cam().name, Perturbation(weighting="layercam").name
            ('Expected Grad-CAM', 'Grad-CAM', 'Expected LayerCAM')

        """
        if self.interval == (1.0, 1.0):
            gradient = "Smooth " if self.noise else ""
        elif self.baseline == "data":
            gradient = "Expected "
        else:
            gradient = "Integrated "
        if gradient == "Expected " and self.weighting in ("elementwise", "channel"):
            return "Expected Grad-CAM" + (", channels pooled" if self.weighting == "channel" else "")
        return gradient + _NAMES[self.weighting]

    def at(self, layer: str) -> str:
        """A layer's name, and the method's where it is not the default, for people to read."""
        return layer if self == Perturbation() else f"{layer} ({self.name})"

    @property
    def needs_baselines(self) -> bool:
        """Whether the explainer must be given baselines."""
        return self.baseline == "data"

    @property
    def is_complete(self) -> bool:
        """Whether maps sum to the difference between the scores of image and baselines, wherever the layer is a cut."""
        path = self.space == "activation" and self.baseline != "none" and self.interval == (0.0, 1.0)
        return path and self.noise == 0 and self.weighting == "elementwise"

    @property
    def single_draw(self) -> bool:
        """Whether every draw would be the same, so that one is all there is."""
        low, high = self.interval
        return low == high and self.noise == 0 and not self.needs_baselines

    @classmethod
    def expected(cls, space: Space = "activation") -> Perturbation:
        """Expected Grad-CAM (Buono et al., TMLR 2026): expected gradients over data baselines, complete at a cut."""
        return cls(space=space)

    @classmethod
    def grad_cam(cls) -> Perturbation:
        """Grad-CAM (Selvaraju et al., 2017): the gradient at the image, averaged over positions."""
        return cls(baseline="none", interval=(1, 1), weighting="channel")

    @classmethod
    def hires_cam(cls) -> Perturbation:
        """HiResCAM (Draelos and Carin, 2020): the gradient at the image, times the activation."""
        return cls(baseline="none", interval=(1, 1))

    @classmethod
    def smooth_grad_cam(cls, noise: float = 0.25) -> Perturbation:
        """SmoothGrad-CAM (after Omeiza et al., 2019): Grad-CAM's weights averaged over noisy copies of the image.

        The weights multiply the *clean* activations; tools that average whole maps differ.
        """
        return cls(space="input", baseline="none", interval=(1, 1), noise=noise, weighting="channel")

    @classmethod
    def integrated_grad_cam(cls) -> Perturbation:
        """Integrated Grad-CAM (after Sattarzadeh et al., 2021): Grad-CAM along the path from the all-zero input.

        The difference of the activations is held constant along the path and nothing is rectified inside the
        integral; Sattarzadeh et al. put a ReLU there.
        """
        return cls(space="input", baseline="zeros", weighting="channel")
