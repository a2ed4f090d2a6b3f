"""The sub-commands of `onward` that talk to a service. `onward.py` imports each when it is used."""
