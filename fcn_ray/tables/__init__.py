"""ROWS: what there is (sources), what to do (plan), put it there once (commit), prove it (audit)."""
