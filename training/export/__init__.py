"""A trained network becomes a bundle: the ONNX graph, the proof that both are equal, and publishing."""
