"""Tables for a notebook: plain HTML, which takes the notebook's own colours, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_TABLE = """<table>
<caption style="caption-side: top; text-align: left">{{ caption }}</caption>
{% if columns %}
<thead><tr>{% for column in columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
{% endif %}
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
"""


def html_table(caption: str, rows: Iterable[Sequence[object]], columns: Sequence[str] = ()) -> str:
    """A small table. Whatever texts hold, they are shown as texts."""
    import jinja2  # here, and not by every command and worker that reads a study

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TABLE).render(
        caption=caption, rows=[list(map(str, row)) for row in rows], columns=columns
    )
