"""The runtimes behind one interface: PyTorch, .pt2, ONNX Runtime and OpenVINO take a batch and give logits."""
