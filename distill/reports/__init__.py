"""Reports of finished runs: tables, the paper's numbers beside ours, indices, figures."""
