"""Which parts of a network carry an answer: edges, circuits, patching."""
