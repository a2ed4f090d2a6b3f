"""The automatic preset: a configuration that is found from a table alone, with a reason for each of its choices.

`columns` finds what the columns are, `profile` measures the training part, `candidates` proposes configurations, and
`search` trains and compares them within a budget.
"""
