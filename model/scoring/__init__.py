"""How predictions come true: what is counted of a session, and what the answer to an input says of the one before it.

Sessions keep it as bytes, wherever they live: in a service's records, or in a process that runs a bundle by itself.
"""
