"""Flags that people bring from the Hugging Face Trainer, its examples and SparseML, and that are not taken here.

Each is refused with its reason or with what to use instead: a flag is never swallowed. Together with the flags that
are honoured, these are all fields of transformers' TrainingArguments, versions 4 and 5 (a test compares them with the
installed version).
"""

from __future__ import annotations

_LAUNCH = "how processes are laid out is said to `accelerate launch`, in a file of accelerate_configs/."
_HUB = "nothing is uploaded; push the output folder with `hf upload`."
_FIXED_OPTIMIZER = "the optimizer is AdamW; see --learning_rate, --weight_decay and the --adam_* flags."
_PRECISION = "use --fp16 or --bf16, for training and evaluation alike."
_DATA_ORDER = "training batches are grouped by length and drawn by --seed, the same at any number of processes."
_LOADER = "batches are small; only the number of processes is settable, with --dataloader_num_workers."
_EVERY_LOG = "training figures are logged every --logging_steps, by the main process."
_METRICS = "metrics follow from the task: accuracy, F1, Matthews, Pearson and Spearman, or squared error."
_OLD_HARDWARE = "this kind of hardware is not supported yet."
_FIND = "text columns are named with --input_column_names, the label column with --label_column_name."
_REWRITE = "rewrite the data set with `datasets`, save it with save_to_disk, and pass the folder as --dataset_name."
_CLEAR_CACHE = "use --gradient_checkpointing for less memory."
_IN_RECIPE = "it lives in the recipe's DistillationModifier; change it with --recipe_args."
_CHECKPOINT = "checkpoints are model.safetensors plus what resuming needs, written by the main process."

REFUSED: dict[str, str] = {
    # --- optimizer and schedule ---
    "optim": _FIXED_OPTIMIZER,
    "optim_args": _FIXED_OPTIMIZER,
    "optim_target_modules": _FIXED_OPTIMIZER,
    "adafactor": _FIXED_OPTIMIZER,
    "lr_scheduler_kwargs": "use a recipe's LearningRateFunctionModifier for other courses of the learning rate.",
    "neftune_noise_alpha": "noise on embeddings is not supported.",
    "average_tokens_across_devices": "the loss is averaged over the rows of the global batch, whatever this says.",
    # --- precision and memory ---
    "fp16_full_eval": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "fp16_opt_level": _PRECISION,
    "fp16_backend": _PRECISION,
    "half_precision_backend": _PRECISION,
    "tf32": "set NVIDIA_TF32_OVERRIDE=1 in the environment.",
    "activation_checkpointing": "use --gradient_checkpointing.",
    "activation_checkpointing_kwargs": "use --gradient_checkpointing.",
    "gradient_checkpointing_kwargs": "use --gradient_checkpointing; its kind is the default of transformers.",
    "torch_compile_backend": "use --torch_compile; its backend is PyTorch's default.",
    "torch_compile_mode": "use --torch_compile; its mode is PyTorch's default.",
    "torchdynamo": "use --torch_compile.",
    "use_liger_kernel": "its kernels are for generative models.",
    "liger_kernel_config": "its kernels are for generative models.",
    "use_cache": "a cache of keys is for generative models.",
    "torch_empty_cache_steps": _CLEAR_CACHE,
    "auto_find_batch_size": "the global batch is part of what a run is; set --per_device_train_batch_size.",
    "jit_mode_eval": "use --torch_compile.",
    "use_ipex": _OLD_HARDWARE,
    # --- processes and hardware ---
    "local_rank": "`accelerate launch` and `torchrun` pass it in the environment; torch.distributed.launch is too old.",
    "use_cpu": "launch with accelerate_configs/cpu.yaml.",
    "no_cuda": "launch with accelerate_configs/cpu.yaml.",
    "use_mps_device": "the device is found by Accelerate.",
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
    "ddp_broadcast_buffers": "it is always off: quantization ranges are kept equal in one exchange a step.",
    "ddp_static_graph": "PyTorch's default is used.",
    "ray_scope": "hyperparameter search is not part of this script.",
    # --- data loading ---
    "data_seed": "use --seed.",
    "full_determinism": "runs on a CPU with a fixed number of threads repeat bit by bit; on a GPU, set "
    "CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment.",
    "group_by_length": "batches are grouped by length already.",
    "train_sampling_strategy": _DATA_ORDER,
    "length_column_name": _DATA_ORDER,
    "dispatch_batches": _DATA_ORDER,
    "split_batches": _DATA_ORDER,
    "dataloader_drop_last": "every row is used; a short last batch is weighted by its rows.",
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "remove_unused_columns": "only what the model takes is kept.",
    "ignore_data_skip": "a resumed run goes on at the row where it stopped.",
    "past_index": "it is for models with memory between batches.",
    # --- evaluation ---
    "label_names": "the labels' names come from the data; their column is --label_column_name.",
    "prediction_loss_only": _METRICS,
    "include_inputs_for_metrics": _METRICS,
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_accumulation_steps": "predictions are a few numbers a row; they are kept on the CPU.",
    "eval_use_gather_object": "predictions are tensors of one size.",
    "eval_delay": "use --best_model_after_epoch to leave early evaluations out of the choice of the best.",
    "eval_on_start": "run the script with --do_eval and without --do_train on the model first.",
    "evaluate_during_training": "use --eval_strategy steps.",
    "per_gpu_train_batch_size": "use --per_device_train_batch_size.",
    "per_gpu_eval_batch_size": "use --per_device_eval_batch_size.",
    "use_legacy_prediction_loop": "there is one evaluation loop.",
    # --- logging ---
    "logging_strategy": _EVERY_LOG,
    "logging_first_step": _EVERY_LOG,
    "logging_dir": "trackers write below --output_dir.",
    "logging_nan_inf_filter": "a loss that is not a number is logged as it is.",
    "log_level": _EVERY_LOG,
    "log_level_replica": _EVERY_LOG,
    "log_on_each_node": _EVERY_LOG,
    "include_num_input_tokens_seen": _EVERY_LOG,
    "include_tokens_per_second": "rows per second are logged.",
    "disable_tqdm": "the progress bar is plain where stderr is no terminal.",
    "skip_memory_metrics": "memory is not measured.",
    "project": "for W&B set WANDB_PROJECT in the environment.",
    "trackio_space_id": "use --report_to wandb or tensorboard.",
    "trackio_bucket_id": "use --report_to wandb or tensorboard.",
    "trackio_static_space_id": "use --report_to wandb or tensorboard.",
    # --- saving ---
    "save_safetensors": "model files are always safetensors.",
    "save_only_model": _CHECKPOINT,
    "save_on_each_node": _CHECKPOINT,
    "enable_jit_checkpoint": "a checkpoint on a signal is not supported; the same command goes on from the newest one.",
    "restore_callback_states_from_checkpoint": "a checkpoint holds the state of the recipe, and it is always restored.",
    "push_to_hub": _HUB,
    "push_to_hub_model_id": _HUB,
    "push_to_hub_organization": _HUB,
    "push_to_hub_token": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    # --- flags of the Trainer's example scripts ---
    "use_auth_token": "log in with `hf auth login`, or set HF_TOKEN in the environment.",
    "token": "log in with `hf auth login`, or set HF_TOKEN in the environment.",
    "use_fast_tokenizer": "the fast tokenizer is used where there is one.",
    "trust_remote_code": "code of a model or dataset repository is never run.",
    "ignore_mismatched_sizes": "a head for another number of labels gives way to a new one; --new_head asks for one.",
    "do_regression": "labels with a fraction (2.5) are regression; --problem_type regression makes others scores too.",
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
    "num_export_samples": "sample inputs are written when the model is exported: see scripts/export_onnx.py.",
    "distill_hardness": _IN_RECIPE,
    "distill_temperature": _IN_RECIPE,
    "student_name_or_path": "use --model_name_or_path.",
    "model": "use --model_name_or_path.",
    "dataset": "use --dataset_name, or --train_file and --validation_file.",
    "teacher": "use --distill_teacher.",
    "arch": "the architecture is read from the model's config.json.",
    "metadata_args": "all settings of a run are kept beside its results.",
}
