"""The digits and a small network in float64, as a workload of tests."""

from tunewright.search.workload.workload import load_workload


class Double:
    not_matrices = ()  # which a function's optimizer of the whole model does not know either

    def __init__(self):
        self._digits = load_workload("tunewright.models.digits:mlp", {"width": 16})

    def __getattr__(self, name):
        return getattr(self._digits, name)

    def build_model(self, seed):
        return self._digits.build_model(seed).double()
