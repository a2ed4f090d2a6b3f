"""Load that checks every answer while the service, its store and its machine fail around it.

python -m tests.e2e.faults --seconds 600 --store redis
"""
