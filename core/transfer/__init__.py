"""The paradigm: take knowledge K from a source S to a target T in a domain D.

An objective F with a counted budget decides how.
"""
