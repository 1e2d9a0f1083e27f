"""The notebook in docs/ does what it says."""

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():  # of its own dependencies
    warnings.simplefilter("ignore")
    import nbformat
    from nbclient import NotebookClient

from tunewright.search.pool.progress import Progress

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def test_it_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.parametrize("has_widgets", [True, False])
def test_bars_move_by_widgets_and_without_them_nothing_warns(has_widgets, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    found = (lambda name: object()) if has_widgets else lambda name: None
    monkeypatch.setattr("tunewright.search.pool.progress.find_spec", found)
    progress = Progress({"mine": []})
    assert progress._bars.console.is_jupyter == has_widgets
    assert progress._bars.disable != has_widgets
    if not has_widgets:
        with progress:
            progress.tick([])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs(tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    shown = [output.get("data", {}) for output in outputs]
    assert "warning" not in said.lower()
    assert "[I 20" not in said  # Optuna's lines
    tables = [data["text/html"] for data in shown if "<table" in data.get("text/html", "")]
    assert len(tables) == 4  # study, results, data frame, comparison
    assert "16 trials" in tables[1]
    assert sum("application/vnd.jupyter.widget-view+json" in data for data in shown) == 3  # bars
    assert any("application/vnd.plotly.v1+json" in data for data in shown)
    assert any(word in said for word in ("adopt", "keep baseline", "not enough evidence"))
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
