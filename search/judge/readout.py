"""What one training's curve says, in sentences and as a record: verdict, onset, clipping.

For the log of a run that somebody else trained as for one that is watched. Source: Tuning Playbook,
"Gradient clipping" (R14–R17).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..trial import Array, Curve, Instability, Trial, Verdict, count_before
from ..words import capitalized, readable
from .analysis import CLIP_TOO_MUCH
from .curve_shape import first_rise, levels
from .early_signs import spikes_sign
from .verdict import LARGEST

CLIP_PERCENTILE = 90  # of the norms: where a clip threshold starts (R16)
FEWEST_NORMS = 20  # that say where a threshold starts
# Norms that were clipped before they were seen end at one value, up to rounding and to the 1e-6
# that torch adds to what it divides by.
SAME_NORM = 1e-4
FEWEST_CLIPPED = 0.05  # of the norms at their highest: norms that nobody clipped scatter
MORE_OFTEN = 3  # than any other value: norms of few digits have many that come again
NEVER = sys.maxsize  # an update that no training comes to
KINDS: dict[Instability, str] = {"none": "no", "early": "early", "mid_training": "mid-training"}


def norm_percentile(norms: Array, percentile: float = CLIP_PERCENTILE) -> float:
    """A percentile of the gradient norms that are finite and above 0 (R16); nan if none is."""
    usable = norms[np.isfinite(norms) & (norms > 0)]
    return float(np.percentile(usable, percentile)) if len(usable) else math.nan


@dataclass(frozen=True)
class Readout:
    """What is to be told of one training. Numbers that are not known are nan.

    clip_norm, clip_z   the thresholds that training used; inf = off
    seen_clipped        the value that the norms end at because they were clipped before they were
                        seen; nan: they were not
    clip_fraction       share of the norms that were clipped (R17); nan if nothing is known to clip
    clip_start          where a clip threshold starts: the 90th percentile of the norms, of those
                        before the onset if the run is infeasible (R16); nan if they are too few,
                        or were clipped before they were seen
    norms               how many there are
    spike_score         share of spikes among the losses (`Curve.spike_score`), of those before
                        training went wrong: a loss that blows up is no spike
    spikes              what is to be told of them; empty if nothing is
    """

    verdict: Verdict
    clip_norm: float
    clip_z: float
    seen_clipped: float
    clip_fraction: float
    clip_start: float
    norms: int
    spike_score: float
    spikes: str

    @property
    def headline(self) -> str:
        """Outcome, kind of instability and onset, in a few words."""
        verdict = self.verdict
        if verdict.instability == "none":
            if verdict.infeasible:
                return f"{verdict.outcome}, of unknown kind"
            return f"{verdict.outcome}, no instability"
        when = "at" if verdict.feasible else "since"
        kind = KINDS[verdict.instability]
        return f"{verdict.outcome}, {kind} instability {when} step {verdict.onset_step:.0f}"

    @property
    def clips_too_much(self) -> bool:
        return self.clip_fraction > CLIP_TOO_MUCH

    @property
    def sentences(self) -> tuple[str, ...]:
        """All that is to be told, each a whole sentence."""
        evidence = self.verdict.evidence
        of_spikes = [f"{capitalized(self.spikes)}."] if self.spikes else []
        return f"{self.headline}: {evidence}.", *of_spikes, *self._of_clipping()

    def _of_clipping(self) -> Iterator[str]:
        if not self.norms:
            yield (
                "No gradient norms are there, so nothing can be said of clipping: log them, before "
                "clipping, at every step (R4, R15)."
            )
            return
        noted = self.clipped_before
        if noted:
            yield (
                f"{capitalized(noted)}. Log the norm before clipping, as "
                "torch.nn.utils.clip_grad_norm_ returns it (R15)."
            )
        if self.clips_too_much:
            yield (
                f"Clipping acts on {self.clip_fraction:.0%} of the updates: it is a learning rate. "
                "Lower the learning rate, and raise the threshold (R17)."
            )
        elif math.isfinite(self.clip_fraction):
            share = f"{self.clip_fraction:.0%}"
            yield f"Clipping acts on {share} of the updates: no more than half (R17)."
        if math.isfinite(self.clip_start):
            before = f" before step {self.verdict.onset_step:.0f}" if self._unstable else ""
            yield (
                f"The 90th percentile of the gradient norms{before} is "
                f"{readable(self.clip_start)}: a clip threshold starts there (R16)."
            )
        elif not noted:
            advice = "Too few gradient norms above 0 are there to say where a clip threshold starts"
            if self._unstable:
                advice = (
                    "Too few gradient norms of sound training are there to say where a clip "
                    "threshold starts: take them from a run at a lower learning rate"
                )
            yield f"{advice} (R16)."

    @property
    def _unstable(self) -> bool:
        return self.verdict.infeasible and math.isfinite(self.verdict.onset_step)

    @property
    def clipped_before(self) -> str:
        """That norms were clipped before they were seen, in words; empty if they were not."""
        if not math.isfinite(self.seen_clipped):
            return ""
        at = f"{self.seen_clipped:.4g}"
        if self.seen_clipped < 1000:
            at = f"{self.seen_clipped:.3f}"
        where = "every step"
        if self.clip_fraction < 1.0:
            where = f"{self.clip_fraction:.0%} of the steps, and never above it"
        return f"the norm is {at} at {where}: it was clipped before it was seen"

    def record(self) -> dict[str, Any]:
        """Plain values for strict JSON: None for what is not known, off or never."""
        verdict = self.verdict
        return {
            "outcome": verdict.outcome,
            "feasible": verdict.feasible,
            "instability": verdict.instability,
            "onset_step": _known(verdict.onset_step),
            "evidence": verdict.evidence,
            "clip_norm": _known(self.clip_norm),
            "clip_z": _known(self.clip_z),
            "norms": self.norms,
            "norm_seen_clipped_at": _known(self.seen_clipped),
            "clip_fraction": _known(self.clip_fraction),
            "clip_start": _known(self.clip_start),
            "spike_score": _known(self.spike_score),
            "sentences": list(self.sentences),
        }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_out(
    curve: Curve,
    verdict: Verdict,
    clip_norm: float = math.inf,
    clip_z: float = math.inf,
    norm_step: NDArray[np.int64] | None = None,
) -> Readout:
    """What a curve and its verdict say of the training, and of how to clip it.

    `clip_norm` and `clip_z` are the thresholds that training used. `norm_step`: the updates of the
    gradient norms, where a log has them at others than its losses.
    """
    norms = curve.grad_norm
    seen_clipped, at_highest = _seen_clipped(norms, clip_norm)
    clip_fraction = at_highest
    if math.isnan(seen_clipped) and len(norms) and min(clip_norm, clip_z) < math.inf:
        clip_fraction = float(np.mean(curve.clipped(clip_norm, clip_z)))
    steps = curve.loss_step if norm_step is None else norm_step
    wrong_from = _wrong_from(curve, verdict)
    sound = norms[: count_before(wrong_from, steps)]
    enough = len(sound) >= FEWEST_NORMS and math.isnan(seen_clipped)
    sound_curve = _first_losses(curve, curve.losses_before(wrong_from))
    return Readout(
        verdict=verdict,
        clip_norm=clip_norm,
        clip_z=clip_z,
        seen_clipped=seen_clipped,
        clip_fraction=clip_fraction,
        clip_start=norm_percentile(sound) if enough else math.nan,
        norms=len(norms),
        spike_score=sound_curve.spike_score,
        spikes=spikes_sign(sound_curve),
    )


def _wrong_from(curve: Curve, verdict: Verdict) -> int:
    """The update at which training went wrong: of a loss that grew until it was not finite, the one
    at which it began to grow; NEVER if it did not go wrong.
    """
    if not (verdict.infeasible and math.isfinite(verdict.onset_step)):
        return NEVER
    onset = int(verdict.onset_step)
    loss = curve.loss[: curve.losses_before(onset)]
    if verdict.outcome != "non_finite" or len(loss) < 2:
        return onset
    rise = first_rise(np.clip(loss, -LARGEST, LARGEST), levels(loss, curve.chance_loss))
    return min(onset, curve.step_of(rise)) if math.isfinite(rise) else onset


def _first_losses(curve: Curve, count: int) -> Curve:
    """A curve whose losses are so many of the first."""
    if count >= len(curve.loss):
        return curve
    steps = None if curve.loss_step is None else curve.loss_step[:count]
    return replace(curve, loss=curve.loss[:count], loss_step=steps)


def clipped_before(trial: Trial) -> str:
    """That the norms of a trial were clipped before they were seen; empty if they were not."""
    point = trial.point
    return read_out(trial.curve, trial.verdict, point.clip_norm, point.clip_z).clipped_before


def note_clipped_before(verdict: Verdict, curve: Curve, clip_norm: float) -> Verdict:
    """The verdict, whose evidence says so if norms were clipped before they were seen.

    `clip_norm`: the threshold at which they were clipped afterwards; inf if they were not.
    """
    noted = read_out(curve, verdict, clip_norm).clipped_before
    if not noted:
        return verdict
    return replace(verdict, evidence="; ".join(filter(None, [verdict.evidence, noted])))


def _seen_clipped(norms: Array, clip_norm: float) -> tuple[float, float]:
    """The value at which norms were clipped before they were seen, and the share that was.

    nan, nan if they were not.
    """
    nothing = math.nan, math.nan
    finite = norms[np.isfinite(norms)]
    if len(finite) < FEWEST_NORMS or finite.max() <= 0:
        return nothing
    highest = float(finite.max())
    if highest > clip_norm * (1 + SAME_NORM):  # then it was seen before that clipped it
        return nothing
    is_highest = finite >= highest * (1 - SAME_NORM)
    at_highest = float(np.mean(is_highest))
    _, counts = np.unique(finite[~is_highest], return_counts=True)
    if at_highest < FEWEST_CLIPPED or is_highest.sum() <= MORE_OFTEN * counts.max(initial=0):
        return nothing
    return highest, at_highest
