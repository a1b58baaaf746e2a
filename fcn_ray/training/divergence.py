"""What a training remembers of its divergences, in `<out>/divergence.json`: the driver may end at any time.

Without it, a run that is gone on with would take the newest checkpoint, which may be the very one that half the rate
did not help, at the rate that it was saved with, and would never come to the end of its tries.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace

from fcn_ray import storage
from fcn_ray.training.checkpoints import find_newest, list_checkpoints, remove_distrusted
from fcn_ray.training.preflight import Job

logger = logging.getLogger(__name__)

FILE = "divergence.json"


@dataclass(frozen=True, slots=True)
class Divergence:
    """What has been tried so far."""

    rollbacks: int = 0
    """Times that the training went back, and on with half the rate."""
    rate_factor: float | None = None
    """On the learning rate; None for that of the checkpoint that is gone on from."""
    distrusted: frozenset[str] = frozenset()
    """Names of checkpoints that half the rate did not help."""


def read_divergence(job: Job) -> Divergence:
    """That of the run in `out`, as far as it is of this job: another learning rate has all its tries still to come, and
    is taken as it is, whatever factor the checkpoints have."""
    uri = storage.join(job.config.out, FILE)
    if not storage.is_file(uri):
        return Divergence()
    try:
        found = json.loads(storage.read_bytes(uri))
        known = Divergence(int(found["rollbacks"]), float(found["rate_factor"]), frozenset(found["distrusted"]))
        if found["settings"] != job.settings:  # of a run that had no checkpoint yet, or it would have been refused
            return Divergence()
        changed = found["learning_rate"] != job.config.optimizer.learning_rate
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and passed over: %s", uri, error)
        return Divergence()
    return Divergence(rate_factor=1.0, distrusted=known.distrusted) if changed else known


def go_back(job: Job, known: Divergence, rate_factor: float) -> Divergence:
    """After a divergence at `rate_factor`: half of it, and from the second time on a checkpoint further back.

    The best checkpoint stays even so, for the bundle; no training goes on from it.
    """
    out, distrusted = job.config.out, known.distrusted
    if known.rollbacks and (newest := find_newest(out, distrusted)):  # half the rate was not enough
        distrusted |= {checkpoint.name for checkpoint in list_checkpoints(out) if checkpoint.step >= newest.step}
    gone_back = replace(known, rollbacks=known.rollbacks + 1, rate_factor=rate_factor / 2, distrusted=distrusted)
    content = {
        "settings": job.settings,
        "learning_rate": job.config.optimizer.learning_rate,
        "rollbacks": gone_back.rollbacks,
        "rate_factor": gone_back.rate_factor,
        "distrusted": sorted(distrusted),
    }
    storage.replace(storage.join(out, FILE), json.dumps(content, indent=1).encode())
    remove_distrusted(out, distrusted)
    return gone_back
