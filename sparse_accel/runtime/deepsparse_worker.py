"""Times one model in DeepSparse 1.8, which needs Python <= 3.11 and its own packages: another interpreter runs this.

    python deepsparse_worker.py MODEL.onnx BATCH TOKENS THREADS

It imports nothing from this project. It prints `ready`; then, for each line of its input, it runs the model once and
prints the seconds. So a run can be interleaved with those of other runtimes.
"""

import sys
import tempfile
import time


def main() -> None:
    import deepsparse
    import numpy
    import onnx

    path, batch, tokens, threads = sys.argv[1], *map(int, sys.argv[2:])
    model = onnx.load(path)
    for entry in model.graph.input:
        for axis, size in enumerate((batch, tokens)):
            entry.type.tensor_type.shape.dim[axis].dim_value = size
    names = [entry.name for entry in model.graph.input]
    ids = numpy.random.randint(2, 30, (batch, tokens)).astype(numpy.int64)
    ones, zeros = numpy.ones_like(ids), numpy.zeros_like(ids)
    feed = [ids if n == "input_ids" else ones if n == "attention_mask" else zeros for n in names]
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        onnx.save(model, file.name)
        engine = deepsparse.compile_model(file.name, batch_size=batch, num_cores=threads)
    engine.run(feed)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        engine.run(feed)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
