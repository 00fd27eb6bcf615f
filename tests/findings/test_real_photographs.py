"""An audit of a network that was trained on photographs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from egcam_lightning import audit

REAL = Path(__file__).parents[3] / "shared" / "real"


@pytest.mark.skipif(not REAL.exists(), reason="the photographs are not there: ../shared/real")
def test_a_network_that_learnt_no_shortcut_has_no_finding(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REAL), *sys.path])
    nets = pytest.importorskip("nets")
    model, transform = nets.load("cifar_resnet20")
    cifar = nets.cifar10()
    images = torch.stack([transform.transforms[-1](image / 255) for image in cifar.test_images[:160]])
    result = audit(model, images, cifar.test_labels[:160], class_names=cifar.class_names)
    assert result.findings == ()
    assert len(result.tested.classes) == 10
    assert result.layer == "layer2"
