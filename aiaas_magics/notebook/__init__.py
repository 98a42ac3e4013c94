"""What the user touches: the magics, what they show, and catching `fit` in a cell.

The only home of IPython. What can be asked of a backend belongs to `backend`.
"""
