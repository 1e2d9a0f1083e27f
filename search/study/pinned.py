"""A study of one point of another study: what reruns, steps of a diagnosis and recipes are."""

from __future__ import annotations

from collections.abc import Mapping

import tomli_w

from ..trial import COMMON, Point
from .study import DECAY_VECTORS, Study, parse_study


def pin(
    origin: Study, point: Point, name: str, axes: Mapping[str, object] | None = None, **keys: object
) -> Study:
    """The study that trains a point as `origin` does.

    `axes` replace values of the point, `keys` replace keys of the file. It has the point's batch
    size and optimizer alone, and no roles, trials or seeds but those given; None leaves a key out.
    Raises UserError as `study.parse_study`.
    """
    own = (
        {axis: getattr(point, axis) for axis in COMMON if axis in point.shown}
        | {**point.settings}
        | {**point.decay_settings}
        | {**(axes or {})}
    )
    document: dict[str, object] = {
        origin.source_key: getattr(origin, origin.source_key),
        "log": origin.log and origin.log.model_dump(exclude_defaults=True),
        "timeout": origin.timeout,
        "workload_args": dict(point.workload_args),
        "objective": origin.objective,
        "maximize": origin.maximize if "maximize" in origin.model_fields_set else None,
        "max_train_steps": origin.train_steps(point.batch_size),
        "batch_sizes": [point.batch_size],
        "evaluations": origin.evaluations,
        "accumulation": origin.accumulation,
        "precision": origin.precision,
        "decay_vectors": origin.decay_vectors if DECAY_VECTORS in origin.model_fields_set else None,
        "prepend_warmup": origin.prepend_warmup,
        "keep_checkpoints": origin.keep_checkpoints,
    }
    document |= keys | {"space": {"optimizer": {point.optimizer: own}}}
    document = {key: value for key, value in document.items() if value is not None}
    return parse_study(document, name, place=name, source=tomli_w.dumps(document))
