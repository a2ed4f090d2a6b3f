"""The sub-commands of `onward` that talk to a service. `onward/__main__.py` imports each when it is used."""
