"""What a user starts from trains and evaluates on any device: the templates, README, and docs/.

torch's meta device stands for a GPU: it computes no numbers, and refuses tensors of the CPU.
"""

import json
from pathlib import Path

import pytest
import torch
from test_readme import files_of

ROOT = Path(__file__).parents[1]
META = torch.device("meta")


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def names_of(source):
    found = {"__name__": "example"}
    exec(compile(source, "example", "exec"), found)
    return found


def cells_of_the_notebook():
    """Its first two cells of code: imports, and the workload."""
    cells = json.loads(text_of("docs/notebook.ipynb"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(sources[:2])


class MetaRun:
    """A run on the meta device whose every update is evaluated; it keeps what it is told."""

    device, batch_size, width = "meta", 64, 8
    evaluation_due = True

    def __init__(self):
        self.losses, self.reports = [], []

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), 0.1)

    def steps(self, loader):
        return list(loader)[:2]

    def loss(self, loss):
        self.losses.append(loss)

    def report(self, model=None, **metrics):
        self.reports.append(metrics)


def test_the_meta_device_refuses_tensors_of_the_cpu():
    model = torch.nn.Linear(2, 2).to(META)
    with pytest.raises(RuntimeError, match="device"):
        model(torch.ones(1, 2))


def workload_of_the_template():
    return names_of(text_of("search/template/workload.py"))["digits"]()


def workload_of_the_readme():
    return names_of(files_of("README.md")["workload.py"])["Digits"]()


def workload_of_the_notebook():
    return names_of(cells_of_the_notebook())["Digits"]()


@pytest.mark.parametrize(
    "make", [workload_of_the_template, workload_of_the_readme, workload_of_the_notebook]
)
def test_a_workload_evaluates_where_its_model_is(make):
    work = make()
    metrics = work.evaluate(work.build_model(seed=0).to(META))
    assert {value.device for value in metrics.values()} == {META}


@pytest.mark.parametrize("place", ["template", "docs"])
def test_a_function_trains_on_the_device_of_its_run(place):
    shown = files_of("docs/your-own-training.md")["train.py"]
    source = shown if place == "docs" else text_of("search/template/function/train.py")
    run = MetaRun()
    names_of(source)["main"](run)
    assert [loss.device for loss in run.losses] == [META, META]
    assert len(run.reports) == 3  # of the untrained model, too
    assert {value.device for found in run.reports for value in found.values()} == {META}
