"""Export: a quantized ONNX graph, and the proof that it equals the PyTorch model."""
