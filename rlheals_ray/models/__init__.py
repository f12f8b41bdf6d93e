"""Models on disk: lazy safetensors checkpoints, chat formats, and the nano base model."""
