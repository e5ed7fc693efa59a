"""What a step holds, and the micro-batch that fits."""
