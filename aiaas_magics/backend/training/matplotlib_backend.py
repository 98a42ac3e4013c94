"""Matplotlib backend of a worker: draws in memory; `show` keeps the open figures and closes them.

Owns matplotlib's side only. It is imported by matplotlib, when the user's code makes its first figure.
"""

from __future__ import annotations

from matplotlib._pylab_helpers import Gcf
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from aiaas_magics.backend.training import shown_figures


class FigureManager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, *, block: bool | None = None) -> None:
        """`plt.show()`."""
        for manager in Gcf.get_all_fig_managers():
            manager.show()
        Gcf.destroy_all()

    def show(self) -> None:
        """`figure.show()`."""
        if shown_figures.current is not None:
            shown_figures.current.keep(self.canvas.figure)


class FigureCanvas(FigureCanvasAgg):  # type: ignore[misc]
    manager_class = FigureManager
