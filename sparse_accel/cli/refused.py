"""Flags of the Hugging Face Trainer, its examples and SparseML that are not supported here.

Each is refused with a reason or a replacement; no flag is ignored silently. Together with the supported flags, these
are all fields of transformers' TrainingArguments, versions 4 and 5 (a test compares them with the installed version).
"""

from __future__ import annotations

_LAUNCH = "configure this for `accelerate launch`, in a file of accelerate_configs/."
_AT_THE_END = "the finished model is uploaded at the end of the run; checkpoints stay on disk."
_FIXED_OPTIMIZER = "the optimizer is AdamW; see --learning_rate, --weight_decay and the --adam_* flags."
_PRECISION = "use --fp16 or --bf16; reported figures are always measured in float32."
_DATA_ORDER = "training batches are grouped by length and drawn by --seed, equal for any number of processes."
_LOADER = "batches are small; only the number of loader processes can be set: --dataloader_num_workers."
_EVERY_LOG = "the main process logs training metrics every --logging_steps."
_METRICS = "the task sets the metrics: accuracy, F1, Matthews, Pearson and Spearman, or squared error."
_OLD_HARDWARE = "this hardware is not supported yet."
_FIND = "name text columns with --input_column_names, the label column with --label_column_name."
_REWRITE = "change the dataset with `datasets`, save it with save_to_disk, and pass the folder as --dataset_name."
_CLEAR_CACHE = "use --gradient_checkpointing for less memory."
_IN_RECIPE = "set it in the recipe's DistillationModifier; change it with --recipe_args."
_CHECKPOINT = "the main process writes checkpoints: model.safetensors plus the state to resume from."

REFUSED: dict[str, str] = {
    # --- optimizer and schedule ---
    "optim": _FIXED_OPTIMIZER,
    "optim_args": _FIXED_OPTIMIZER,
    "optim_target_modules": _FIXED_OPTIMIZER,
    "adafactor": _FIXED_OPTIMIZER,
    "lr_scheduler_kwargs": "use a recipe's LearningRateFunctionModifier for other learning rate schedules.",
    "neftune_noise_alpha": "noise on embeddings is not supported.",
    "average_tokens_across_devices": "the loss is always averaged over the rows of the global batch.",
    # --- precision and memory ---
    "fp16_full_eval": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "fp16_opt_level": _PRECISION,
    "fp16_backend": _PRECISION,
    "half_precision_backend": _PRECISION,
    "tf32": "set NVIDIA_TF32_OVERRIDE=1 in the environment.",
    "activation_checkpointing": "use --gradient_checkpointing.",
    "activation_checkpointing_kwargs": "use --gradient_checkpointing.",
    "gradient_checkpointing_kwargs": "use --gradient_checkpointing, with transformers' default settings.",
    "torch_compile_backend": "use --torch_compile, with PyTorch's default backend.",
    "torch_compile_mode": "use --torch_compile, with PyTorch's default mode.",
    "torchdynamo": "use --torch_compile.",
    "use_liger_kernel": "its kernels are for generative models.",
    "liger_kernel_config": "its kernels are for generative models.",
    "use_cache": "a key/value cache is for generative models.",
    "torch_empty_cache_steps": _CLEAR_CACHE,
    "auto_find_batch_size": "the batch size of a run is fixed; set --per_device_train_batch_size.",
    "jit_mode_eval": "use --torch_compile.",
    "use_ipex": _OLD_HARDWARE,
    # --- processes and hardware ---
    "local_rank": "`accelerate launch` and `torchrun` pass it in the environment; torch.distributed.launch is too old.",
    "use_cpu": "launch with accelerate_configs/cpu.yaml.",
    "no_cuda": "launch with accelerate_configs/cpu.yaml.",
    "use_mps_device": "Accelerate selects the device.",
    "xpu_backend": _LAUNCH,
    "tpu_num_cores": _OLD_HARDWARE,
    "tpu_metrics_debug": _OLD_HARDWARE,
    "mp_parameters": _OLD_HARDWARE,
    "accelerator_config": _LAUNCH,
    "parallelism_config": _LAUNCH,
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "fsdp_min_num_params": _LAUNCH,
    "fsdp_transformer_layer_cls_to_wrap": _LAUNCH,
    "sharded_ddp": _LAUNCH,
    "deepspeed": _LAUNCH,
    "ddp_backend": _LAUNCH,
    "ddp_timeout": _LAUNCH,
    "ddp_bucket_cap_mb": "PyTorch's default is used.",
    "ddp_broadcast_buffers": "always off: quantization ranges are synchronized once per step.",
    "ddp_static_graph": "PyTorch's default is used.",
    "ray_scope": "hyperparameter search is not part of this script.",
    # --- data loading ---
    "data_seed": "use --seed.",
    "full_determinism": "CPU runs with a fixed number of threads are bit-identical; on a GPU, set "
    "CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment.",
    "group_by_length": "batches are always grouped by length.",
    "train_sampling_strategy": _DATA_ORDER,
    "length_column_name": _DATA_ORDER,
    "dispatch_batches": _DATA_ORDER,
    "split_batches": _DATA_ORDER,
    "dataloader_drop_last": "every row is used; a short last batch is weighted by its number of rows.",
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "remove_unused_columns": "only the columns that the model needs are kept.",
    "ignore_data_skip": "a resumed run continues at the row where it stopped.",
    "past_index": "it is for models that keep state between batches.",
    # --- evaluation ---
    "label_names": "label names come from the data; name their column with --label_column_name.",
    "prediction_loss_only": _METRICS,
    "include_inputs_for_metrics": _METRICS,
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_accumulation_steps": "predictions are a few numbers per row; they are kept on the CPU.",
    "eval_use_gather_object": "predictions are tensors of equal size.",
    "eval_delay": "use --best_model_after_epoch to exclude early evaluations from the choice of the best.",
    "eval_on_start": "first run the script on the model with --do_eval and without --do_train.",
    "evaluate_during_training": "use --eval_strategy steps.",
    "per_gpu_train_batch_size": "use --per_device_train_batch_size.",
    "per_gpu_eval_batch_size": "use --per_device_eval_batch_size.",
    "use_legacy_prediction_loop": "there is only one evaluation loop.",
    # --- logging ---
    "logging_strategy": _EVERY_LOG,
    "logging_first_step": _EVERY_LOG,
    "logging_dir": "trackers write to a folder in --output_dir.",
    "logging_nan_inf_filter": "a NaN or inf loss is never logged: the run stops or skips the step; see --nan_loss.",
    "log_level_replica": "only the main process prints; see --log_level.",
    "log_on_each_node": _EVERY_LOG,
    "include_num_input_tokens_seen": _EVERY_LOG,
    "include_tokens_per_second": "rows and tokens per second are always logged.",
    "disable_tqdm": "if stderr is not a terminal, progress is printed as plain lines.",
    "skip_memory_metrics": "the peak memory is always logged; it costs nothing.",
    "trackio_space_id": "set TRACKIO_SPACE_ID in the environment.",
    "trackio_bucket_id": "set TRACKIO_BUCKET_ID in the environment.",
    "trackio_static_space_id": "runs are kept on disk; publish one with trackio's own command.",
    # --- saving ---
    "save_safetensors": "models are always saved as safetensors.",
    "save_only_model": _CHECKPOINT,
    "save_on_each_node": _CHECKPOINT,
    "enable_jit_checkpoint": "SIGTERM and SIGUSR1 already save a checkpoint; the same command resumes from it.",
    "restore_callback_states_from_checkpoint": "a checkpoint contains the recipe's state, and it is always restored.",
    "push_to_hub_model_id": "use --hub_model_id.",
    "push_to_hub_organization": "use --hub_model_id ORGANIZATION/NAME.",
    "push_to_hub_token": "set HF_TOKEN in the environment, or use --hub_token.",
    "hub_strategy": _AT_THE_END,
    "hub_always_push": _AT_THE_END,
    "hub_revision": "uploads go to the branch main; use --hub_model_id for another repository.",
    # --- flags of the Trainer's example scripts ---
    "use_auth_token": "log in with `hf auth login`, or set HF_TOKEN in the environment.",
    "token": "log in with `hf auth login`, or set HF_TOKEN in the environment.",
    "use_fast_tokenizer": "the fast tokenizer is used if there is one.",
    "trust_remote_code": "code from a model or dataset repository is never run.",
    "ignore_mismatched_sizes": "a head for another number of labels is replaced by a new one; --new_head forces it.",
    "do_regression": "labels with a fraction (2.5) are regression; for other numbers use --problem_type regression.",
    "metric_name": _METRICS,
    "text_column_names": _FIND,
    "text_column_name": _FIND,
    "text_column_delimiter": _FIND,
    "remove_columns": _REWRITE,
    "train_split_name": _REWRITE,
    "validation_split_name": _REWRITE,
    "test_split_name": _REWRITE,
    "remove_splits": _REWRITE,
    "shuffle_train_dataset": _DATA_ORDER,
    "shuffle_seed": "use --seed.",
    # --- flags of SparseML ---
    "task": "use --task_name for a GLUE task.",
    "num_export_samples": "no sample inputs are written; scripts/export_onnx.py takes real text as --data.",
    "distill_hardness": _IN_RECIPE,
    "distill_temperature": _IN_RECIPE,
    "student_name_or_path": "use --model_name_or_path.",
    "model": "use --model_name_or_path.",
    "dataset": "use --dataset_name, or --train_file and --validation_file.",
    "teacher": "use --distill_teacher.",
    "arch": "the architecture is read from the model's config.json.",
    "metadata_args": "all settings of a run are saved next to its results.",
}
