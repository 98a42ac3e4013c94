"""The magics: one file per family holds options, request and method together.

`extension` finds every `Family` of this folder, so that a new file here is all that a new magic needs to be loaded,
completed and documented.
"""
