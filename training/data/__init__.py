"""Tables and texts become series of numbers: reading, vocabularies, splits and training examples."""
