"""Everything that people read: tables, report, dashboard, plots, advice."""
