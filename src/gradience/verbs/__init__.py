"""Verbs, a folder each: options, work (``run``), view (its report as blocks) and command.

A verb's report type is in `gradience.schema`. `schema`, `rules`, `validate` and `import` are a file each.
"""
