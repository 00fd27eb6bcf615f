"""The audit: which classes are called by a patch of their images alone, with windows at random places beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from egcam_lightning.explain.chunking import Chunks
from egcam_lightning.explain.config import ExplainerConfig
from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.explain.isolation import isolated, uninitialised
from egcam_lightning.findings.examples import EXAMPLES, examples_of
from egcam_lightning.findings.inputs import check_audited, check_classifier, two_columns
from egcam_lightning.findings.interventions import Deal, Pasting, Pool, effects_by
from egcam_lightning.findings.kinds import doubt
from egcam_lightning.findings.likeness import likeness
from egcam_lightning.findings.parts import with_parts
from egcam_lightning.findings.records import AuditRecord, ClassRecord, Patch, class_name, enough_tested
from egcam_lightning.findings.search import Search, fine_layer
from egcam_lightning.findings.sentences import headline
from egcam_lightning.findings.shares import visible_excess
from egcam_lightning.findings.sharing import Alone, Workers
from egcam_lightning.findings.spread import spread_effects
from egcam_lightning.findings.verdicts import LEVEL, findings, passed
from egcam_lightning.findings.windows import Windows, random_windows
from egcam_lightning.seeding import generator_for

LEAST_IMAGES = 4
_PASTES = 16  # fresh ones, of each window
_FILLS = 3
_BASELINES = 32
_SHOWN = 12  # classes whose turned images are kept: those with the largest excess


def audit_with(
    model: nn.Module,
    config: ExplainerConfig,
    images: Tensor,
    labels: Tensor | None = None,
    baselines: Tensor | None = None,
    *,
    masks: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    workers: Workers | None = None,
) -> AuditRecord:
    """Audit a model; it is left as it was.

    Windows of the images that the model gets right, chosen by their maps and by what a few pastes of each say (see
    :class:`~egcam_lightning.findings.search.Search`), are pasted at their place into images of other classes.
    Of each class the strongest tenth, so that a patch on a minority of its images is not lost in their mean, is pasted
    into fresh images, which played no part in the choice. What counts is how many the model then calls by the window's
    class, against windows of the same size at random places of the same images. What the images of a class share is
    tried too, see :func:`~egcam_lightning.findings.spread.spread_effects`. A class has a finding where a difference
    passes Fisher's exact test (at 5 % for all tests of the audit together, by Holm's procedure) *and* is larger than
    what parts of objects do in clean networks, see :data:`~egcam_lightning.findings.kinds.LEAST`.

    Measured on CIFAR-10 (256 test images, fine-tuned ResNet-20s): windows did 0.15 to 0.50 more than their control in
    some class of 39 clean networks, and a repeated piece 0.05 at most. Of 13 networks with a tag of 12x5 or a crop of
    8x8 on all or half of a class eleven had learnt it so that it alone turns 11 to 69 % of other images: each had a
    finding of that class, which came first. Two whose cue turns 5 and 7 % had none.

    Args:
        model: the model.
        config: how it is explained. Where its layer is searched for, a fine one is, see
            :func:`~egcam_lightning.findings.search.fine_layer`.
        images: ``(N, C, H, W)``, as the model takes them.
        labels: ``(N,)`` int64; ``None`` for what the model predicts.
        baselines: ``(R, C, H, W)``, images to explain against and to paste into; ``None`` for the audited ones.
        masks: ``(N, H, W)`` bool, where the objects are: windows are then taken beside them, since one that holds a
            small object calls its class rightly. ``None`` where that is not known, and people have to look.
        class_names: a name for each class.
        seed: of places and pastes.
        workers: processes that do the same with the same images, and share the work; ``None`` for this one alone.

    Returns:
        What was found and what was tested.

    Raises:
        ValueError: for images, labels or a model that cannot be audited.

    """
    workers = workers or Alone()
    check_audited(images, labels, baselines)
    lazy = uninitialised(model)
    if lazy is not None:
        raise ValueError(f"No audit: the model's parameter {lazy!r} has no values yet. Call it with a batch first.")
    explainer = ExpectedGradCAM(model, **config.arguments())
    generator = generator_for(seed, 13)
    classify = lambda images: two_columns(explainer.forward(images)).float()  # noqa: E731
    with torch.inference_mode(False), torch.no_grad(), isolated(model, seed=seed):
        explainer = workers.run_or_raise_everywhere(lambda: _prepared(explainer, config, images, labels))
        chunks = Chunks(explainer.chunk_size)
        own = Pool.of(classify, images, labels, chunks, workers)
        others = own if baselines is None else Pool.of(classify, baselines, None, chunks, workers)
        count = torch.bincount(own.label)
        target = count.nonzero().flatten()
        count = count[target]
        group = torch.searchsorted(target, own.label)
        right = own.prediction == own.label
        num_right = torch.bincount(group[right], minlength=len(target))
        deal = Deal(target, others, generator)
        reasons = [
            _why_not(*numbers, labels is not None)
            for numbers in zip(count.tolist(), num_right.tolist(), deal.available.tolist(), strict=True)
        ]
        names = [class_name(class_names, k) for k in target.tolist()]
        fits = torch.tensor([not reason for reason in reasons], device=group.device)
        image = (right & fits[group]).nonzero().flatten()
        notes = [] if labels is not None else ["There were no labels: the classes are those that the model predicts."]
        if not len(image):
            classes = [
                ClassRecord(k, name, n, r, torch.zeros(0, 0), math.nan, why_not=reason)
                for k, name, n, r, reason in zip(
                    target.tolist(), names, count.tolist(), num_right.tolist(), reasons, strict=True
                )
            ]
            notes += _left_out(classes)
            return AuditRecord(
                (), tuple(classes), len(images), "", math.inf, headline([], 0, 0, None, enough=False), tuple(notes)
            )

        evenly = torch.linspace(0, len(images) - 1, min(_BASELINES, len(images))).round().long().to(images.device)
        shown = images[evenly] if baselines is None else baselines

        def explain(rows: Tensor) -> Tensor:
            some = image[rows.to(image.device)]
            return explainer(images[some], shown, own.label[some], image_index=some.tolist()).attribution

        attribution = workers.share(explain, len(image))
        size = (images.shape[2], images.shape[3])
        maps = interpolate(attribution[:, None], size=size, mode="bilinear")[:, 0]

        if masks is not None:
            maps = maps.masked_fill(masks[image], -1e3 * float(maps.abs().amax()))
            notes.append("Windows were taken beside the marked objects, as far as there is room; what is spread, too.")

        pasting = Pasting(classify, own, others, chunks, workers)
        of_class, group = group, group[image]
        search = Search(pasting, deal, own, others)
        best, rise = search.window_of_each(maps, image, group)
        windows, of = search.strongest(best, rise, group)
        control = random_windows(windows, size, generator)

        row, onto = deal.draw(of, _PASTES, fresh=True)
        call = target[of[row]]
        capture, capture_control = (pasting.into_others(w[row], onto).argmax(1) == call for w in (windows, control))
        fill_row, other = deal.draw(of, _FILLS, fresh=True)
        call = target[of[fill_row]]
        removal, removal_control = (
            pasting.out_of_own(w[fill_row], other).argmax(1) != call for w in (windows, control)
        )

        captures = effects_by(of[row], capture, capture_control, len(target))
        removals = effects_by(of[fill_row], removal, removal_control, len(target))
        pasted = torch.bincount(row, minlength=len(windows))
        share = torch.bincount(row[capture], minlength=len(windows)) / pasted.clamp(min=1)
        spread = spread_effects(pasting, deal, own, others, best, rise, of_class, generator, masks, class_names)
        within, between, mean = likeness(attribution, group, len(target))
        classes = []
        for i, (k, name, reason) in enumerate(zip(target.tolist(), names, reasons, strict=True)):
            mine = (of == i).nonzero().flatten()
            shown_of = mine[share[mine].argsort(descending=True, stable=True)][:EXAMPLES]
            classes.append(
                ClassRecord(
                    target=k,
                    class_name=name,
                    num_images=int(count[i]),
                    num_right=int(num_right[i]),
                    mean_map=mean[i].cpu() if not reason else torch.zeros(0, 0),
                    likeness=float(within[i]),
                    likeness_to_others=float(between[i]),
                    capture=captures[i],
                    removal=removals[i],
                    patches=_patches(images, windows, share, shown_of),
                    pastes=examples_of(own, others, windows, shown_of.tolist(), (row, onto, capture), class_names),
                    spread=spread.get(i, ()),
                    num_windows=len(mine),
                    num_strong=int((share[mine] > 0.5).sum()),
                    why_not=reason,
                )
            )
        classes.sort(key=lambda c: -c.weight if c.tested else math.inf)
        classes = [c if i < _SHOWN else replace(c, pastes=()) for i, c in enumerate(classes)]
        those = passed(classes)
        until = pasting.passes + len(images)
        classes = [
            with_parts(c, pasting, deal, windows[deal.target[of] == c.target], generator, until)
            if (c.target, "capture") in those
            else c
            for c in classes
        ]

    notes += _left_out(classes)
    found = findings(classes, those)
    tested = [c for c in classes if c.capture]
    controls = [(c.capture.control, c.capture.pastes) for c in tested if c.capture]
    sees = visible_excess(sum(share for share, _ in controls) / len(controls), min(n for _, n in controls), LEVEL)
    kind, name, most = max(
        ((kind, c.class_name, effect) for c in tested for kind, effect in c.captures),
        key=lambda one: doubt(one[0], one[2].excess),
    )
    sentence = headline(
        [(f.class_name, f.kind) for f in found],
        len(tested),
        len(image),
        (kind, name, most.effect, most.control),
        enough=enough_tested(tested, sees),
    )
    return AuditRecord(
        found, tuple(classes), len(images), str(explainer.layer), sees, sentence, tuple(notes), pasting.passes
    )


def _prepared(
    explainer: ExpectedGradCAM, config: ExplainerConfig, images: Tensor, labels: Tensor | None
) -> ExpectedGradCAM:
    """The explainer, of a classifier, at a layer whose grid is fine where there is one."""
    check_classifier(explainer.forward(images[:2]), labels)
    fine = fine_layer(explainer, images) if config.target_layer == "auto" else None
    if fine is not None:
        explainer = ExpectedGradCAM(explainer.model, **config.arguments(target_layer=fine))
    explainer.find(images)
    return explainer


def _why_not(count: int, right: int, available: int, labelled: bool) -> str:
    """Why a class cannot be tested; empty where it can."""
    if count < LEAST_IMAGES:
        return f"it has {count} image{'s' * (count != 1)}, and at least {LEAST_IMAGES} are needed"
    if right < LEAST_IMAGES and labelled:
        return f"the model calls {right} of its {count} images by it, and at least {LEAST_IMAGES} are needed"
    if available < LEAST_IMAGES:
        return (
            f"there are {available} images of other classes that the model does not call by it, and at least "
            f"{LEAST_IMAGES} are needed to paste into"
        )
    return ""


def _left_out(classes: Sequence[ClassRecord]) -> list[str]:
    return [f"{c.class_name!r} was left out: {c.why_not}." for c in classes if c.why_not]


def _patches(images: Tensor, windows: Windows, share: Tensor, rows: Tensor) -> tuple[Patch, ...]:
    found = []
    for row in rows.tolist():
        one = windows[torch.tensor([row], device=rows.device)]
        image, top, left, height, width = (int(part) for part in one.parts)
        pixels = images[image, :, top : top + height, left : left + width].detach().cpu().clone()
        found.append(Patch(image, top, left, pixels, float(share[row])))
    return tuple(found)
