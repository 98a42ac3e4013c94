"""Plots: numbers to figures, and the same numbers to text.

`study_figure`, `load_figure`, `history_figure` and `endpoint_figure` each return a `matplotlib.figure.Figure`. They open no
window, touch no pyplot state and read no global style. `text_twins` has the same without matplotlib. Measuring belongs to
`backend` and `client`, showing in a cell to `notebook.present`.
"""
