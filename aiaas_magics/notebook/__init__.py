"""The notebook side: magics, live views, and the capture of `fit` in a cell.

The only home of IPython. Requests to a backend belong to `client`.
"""
