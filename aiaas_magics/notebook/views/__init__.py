"""Live views: what is seen while something runs, and what stays when it has ended.

`live` owns the one thread that redraws and the freezing at the end; `panel` the frame that all views share. Each view
makes plain data of what it is told and draws it three times the same: by an ES module, as HTML, in words.
"""
