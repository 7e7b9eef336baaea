"""How a finding looks: tables, plots, pages, rows of JSON and CSV, progress."""
