"""Training stateful recurrent models and exporting them as bundles. The only importer of torch and onnx."""
