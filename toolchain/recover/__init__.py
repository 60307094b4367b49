"""What makes up for pruning: compensation, distillation, LoRA."""
