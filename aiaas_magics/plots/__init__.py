"""Numbers to figures, and the same numbers to text.

`study`, `latency` and `history` each return a `matplotlib.figure.Figure`; they open no
window, touch no pyplot state and read no global style. `text` is their twin without
matplotlib. Measuring belongs to `client`, showing in a cell to `notebook.present`.
"""
