"""Times models in DeepSparse 1.8, which needs Python <= 3.11 and its own packages: another interpreter runs this file.

It imports nothing from this project. Its last line is {"1": {"float": milliseconds, ...}, "32": {...}}.
"""

import json
import statistics
import sys
import time


def main() -> None:
    import deepsparse
    import numpy
    import onnx

    order = json.loads(sys.argv[1])
    result = {}
    for batch in (1, 32):
        engines: dict = {}
        for name, path in order["files"].items():
            model = onnx.load(path)
            for entry in model.graph.input:
                for axis, size in enumerate((batch, order["tokens"])):
                    entry.type.tensor_type.shape.dim[axis].dim_value = size
            names = [entry.name for entry in model.graph.input]
            ids = numpy.random.randint(2, 30, (batch, order["tokens"])).astype(numpy.int64)
            ones, zeros = numpy.ones_like(ids), numpy.zeros_like(ids)
            feed = [ids if n == "input_ids" else ones if n == "attention_mask" else zeros for n in names]
            onnx.save(model, path + ".deepsparse.onnx")
            engine = deepsparse.compile_model(path + ".deepsparse.onnx", batch_size=batch, num_cores=1)
            engine.run(feed)
            engines[name] = (engine, feed, [])
        for _ in range(20 if batch == 1 else 5):
            for engine, feed, times in engines.values():
                began = time.perf_counter()
                engine.run(feed)
                times.append(time.perf_counter() - began)
        result[str(batch)] = {name: statistics.median(times) * 1000 for name, (_, _, times) in engines.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
