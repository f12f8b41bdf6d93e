"""Stage 1: the SFT trunk. TRL's SFTTrainer on Ray Train, response-only loss, checkpoints at the study's steps."""
