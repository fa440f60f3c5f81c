"""AirPFed-LoRA: personalised, multi-task federated LoRA fine-tuning of LLMs over the air."""
