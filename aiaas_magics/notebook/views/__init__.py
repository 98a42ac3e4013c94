"""What is seen while a job runs, and what stays when it has ended.

`picture` turns a story into plain data, once for all kinds of view; `widget`, `html` and
`text_twins` draw it; `live` owns the one thread that redraws and the freezing at the end.
"""
