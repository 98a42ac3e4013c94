"""Numbers to figures, and the same numbers to text.

`study_figure`, `latency` and `history_figure` each return a `matplotlib.figure.Figure`; they open no
window, touch no pyplot state and read no global style. `text_twins` is their twin without
matplotlib. Measuring belongs to `backend`, showing in a cell to `notebook.present`.
"""
