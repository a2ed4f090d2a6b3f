"""The sub-commands of `onward` that call a service. `onward/__main__.py` imports each when it is used."""
