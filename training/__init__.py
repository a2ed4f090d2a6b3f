"""Training of stateful recurrent models and their export as bundles. The only package that imports torch and onnx."""
