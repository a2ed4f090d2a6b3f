"""Tables as people have them: one reader for files and live streams, for training and for the commands of the client.

Only `settings` may be imported where polars is not installed.
"""
