"""Training the points of a task where a test runs, as a worker process does."""

from collections import deque

from tunewright.search.pool import worker
from tunewright.search.pool.inbox import Inbox, OwnDesk


def work(task, device="cpu"):
    """Train all points of a task, and leave the trials in its inbox."""
    for _ in worker.work(task.job, OwnDesk(task.inbox, deque(task.points)), device):
        pass


def why_alone(folder, point):
    return Inbox(folder).why_alone(point)


class Keeper(worker._Keeper):
    """What keeps the states of a folder's points in training."""

    def __init__(self, folder):
        super().__init__(OwnDesk(folder, deque()))
