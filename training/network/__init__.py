"""The network: the input layer, recurrent layers and heads."""
