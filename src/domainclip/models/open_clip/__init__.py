"""OpenCLIP's checkpoints, in and out."""
