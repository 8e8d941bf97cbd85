"""A deployment folder -> a session of onnxruntime that is as fast as this CPU allows, with the same answers.

    from sparse_accel.runtime import explain, session

    model = session("deployment")          # an ordinary onnxruntime.InferenceSession
    logits = model.run(["logits"], inputs)[0]
    print(explain(model))

This package needs numpy, onnx and onnxruntime, and nothing else.
"""

from sparse_accel.runtime.loading import Explanation, explain, session

__all__ = ["Explanation", "explain", "session"]
