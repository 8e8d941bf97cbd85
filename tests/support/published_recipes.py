"""The 24 recipes for encoders that SparseML's repository published, made from what they differ in."""

from __future__ import annotations

from collections.abc import Mapping

ENCODER = [
    f"re:bert.encoder.layer.*.{name}.weight"
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
OUTPUTS = {"squad": "start_logits, end_logits", "mnli": "logits", "qqp": "logits", "mlm": "logits"}


def published_recipes(**changed: object) -> dict[str, str]:
    """The recipes' texts by name.

    Args:
        changed: keys of OBSPruningModifier with other values, such as num_grads, for models of a few thousand weights.
    """
    found = {"30epochs_dense_squad": _long("squad", "")}
    for name in ("init30_4block80", "init30_4block90", "4block80", "4block90", "init30_unstructured80"):
        found[f"30epochs_{name}_squad"] = _long("squad", _obs(name, "squad", changed))
    for name in ("init30_unstructured90", "unstructured80", "unstructured90", "unstructured97"):
        found[f"30epochs_{name}_squad"] = _long("squad", _obs(name, "squad", changed))
    for task in ("mnli", "qqp"):
        for name in ("unstructured80", "unstructured90", "unstructured97"):
            found[f"30epochs_{name}_{task}"] = _long(task, _obs(name, task, changed))
    for name in ("unstructured90", "unstructured97"):
        found[f"3epochs_{name}_mlm"] = _mlm(_obs(name, "mlm", changed))
    for task in ("squad", "mnli", "qqp"):
        found[f"8epochs_sparse_transfer_{task}"] = _transfer(task)
    found["doc2query_90sparse"] = DOC2QUERY + "".join(_t5_weight(name) for name in _t5_weights())
    found["doc2query_noprune"] = DOC2QUERY
    found["recipe_short_prune_quant_distil"] = SHORT
    return found


def _obs(name: str, task: str, changed: Mapping[str, object]) -> str:
    """`init30_4block80`: from 30% (otherwise 70%) to 80%, in blocks of four."""
    mlm = task == "mlm"
    keys: dict[str, object] = {
        "params": "[\n" + "".join(f'      "{pattern}",\n' for pattern in ENCODER) + "    ]",
        "init_sparsity": 0.3 if name.startswith("init30") else 0.7,
        "final_sparsity": f"0.{name[-2:].rstrip('0')}",
        "start_epoch": 0 if mlm else 2,
        "end_epoch": 2.75 if mlm else 26,
        "update_frequency": 0.25 if mlm else 4.0,
        "inter_func": "cubic",
        "global_sparsity": True,
        "mask_type": "block4" if "4block" in name else "unstructured",
        "num_grads": 1024,
        "damp": "1e-7",
        "fisher_block_size": 32 if "4block" in name else 50,
        "grad_sampler_kwargs": f"\n      batch_size: {8 if task == 'squad' else 16}",
        **changed,
    }
    return "\n  - !OBSPruningModifier\n" + "".join(f"    {key}: {value}\n" for key, value in keys.items())


def _distillation(task: str, temperature: float) -> str:
    return f"""
distillation_modifiers:
  - !DistillationModifier
     hardness: 1.0
     temperature: {temperature}
     distill_output_keys: [{OUTPUTS[task]}]
"""


def _long(task: str, obs: str) -> str:
    rates = ("8e-5", "8e-6") if task == "squad" else ("5e-5", "5e-6")
    return f"""
modifiers:
  - !EpochRangeModifier
    start_epoch: 0
    end_epoch: 30

training_modifiers:
  - !LearningRateFunctionModifier
    start_epoch: 0.0
    end_epoch: 2.0
    lr_func: linear
    init_lr: {rates[0]}
    final_lr: {rates[1]}
  - !LearningRateFunctionModifier
    start_epoch: 2.0
    end_epoch: 30.0
    lr_func: cyclic_linear
    cycle_epochs: 4.0
    init_lr: {rates[0]}
    final_lr: {rates[1]}
{obs}{_distillation(task, 2.0)}"""


def _mlm(obs: str) -> str:
    return f"""
modifiers:
  - !EpochRangeModifier
    start_epoch: 0
    end_epoch: 3

training_modifiers:
  - !LearningRateFunctionModifier
    start_epoch: 0.0
    end_epoch: 3.0
    lr_func: cyclic_linear
    cycle_epochs: 0.25
    init_lr: 5e-4
    final_lr: 5e-6
{obs}{_distillation("mlm", 5.5)}"""


def _transfer(task: str) -> str:
    params = "".join(f"      - {pattern}\n" for pattern in ENCODER)
    return f"""
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0
    end_epoch: 8

  - !LearningRateFunctionModifier
      start_epoch: 0
      end_epoch: 8
      lr_func: linear
      init_lr: 1.5e-4
      final_lr: 1.5e-6

pruning_modifiers:
  - !ConstantPruningModifier
    start_epoch: 0
    end_epoch: 8
    params:
{params}{_distillation(task, 5.5)}"""


DOC2QUERY = """version: 1.1.0

modifiers:
    - !EpochRangeModifier
        end_epoch: 5
        start_epoch: 0.0
"""


def _t5_weights() -> list[str]:
    """The 192 weights of a T5 of 12 blocks."""
    attention, dense = ("q", "k", "v", "o"), ("wi", "wo")
    layers = {
        "encoder": (("SelfAttention", attention), ("DenseReluDense", dense)),
        "decoder": (("SelfAttention", attention), ("EncDecAttention", attention), ("DenseReluDense", dense)),
    }
    return [
        f"{side}.block.{block}.layer.{number}.{layer}.{part}.weight"
        for block in range(12)
        for side in layers
        for number, (layer, parts) in enumerate(layers[side])
        for part in parts
    ]


def _t5_weight(name: str) -> str:
    return f"""
    - !GMPruningModifier
        end_epoch: 4
        final_sparsity: 0.90
        init_sparsity: 0.00
        inter_func: cubic
        leave_enabled: True
        mask_type: unstructured
        params: ['{name}']
        start_epoch: 1
        update_frequency: 0.01
"""


SHORT = """
---
version: 1.1.0

# General Params
num_epochs: 3
init_lr: 1.5e-4
final_lr: 0
lr_rewind_epoch: 2

# Distillation Params
distill_hardness: 1.0
distill_temperature: 2.0

# Pruning Params
pruning_init_sparsity: 0.7
pruning_final_sparsity: 0.9
pruning_start_epoch: 0
pruning_end_epoch: 1
pruning_update_frequency: 0.01

# Quantization Params
qat_epochs: 1
qat_no_observer_epochs: 1.0
quantize_embeddings: 1


# Modifiers:
training_modifiers:
  - !EpochRangeModifier
      end_epoch: eval(num_epochs)
      start_epoch: 0.0

  - !LearningRateFunctionModifier
    start_epoch: 0
    end_epoch: eval(lr_rewind_epoch)
    lr_func: linear
    init_lr: eval(init_lr)
    final_lr: eval(final_lr)

distillation_modifiers:
  - !DistillationModifier
     hardness: eval(distill_hardness)
     temperature: eval(distill_temperature)
     distill_output_keys: [start_logits, end_logits]

pruning_modifiers:
  - !MagnitudePruningModifier
    params: __ALL_PRUNABLE__
    start_epoch: eval(pruning_start_epoch)
    end_epoch: eval(pruning_end_epoch)
    init_sparsity: eval(pruning_init_sparsity)
    final_sparsity: eval(pruning_final_sparsity)
    inter_func: cubic
    update_frequency: eval(pruning_update_frequency)
    mask_type: [1, 4]

quantization_modifiers:
  - !QuantizationModifier
      start_epoch: eval(num_epochs - qat_epochs)
      disable_quantization_observer_epoch: eval(num_epochs - qat_no_observer_epochs)
      freeze_bn_stats_epoch: eval(num_epochs - qat_no_observer_epochs)
      quantize_embeddings: eval(quantize_embeddings)
      quantize_linear_activations: 0
      exclude_module_types: ['LayerNorm', 'Tanh']
      submodules:
        - bert.embeddings
        - bert.encoder
        - qa_outputs
---
"""
