"""Any timm classifier, the one training loop, and batched inference."""
