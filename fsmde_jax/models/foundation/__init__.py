"""Foundation models: DPT and Depth Anything, ViT, BiT, our small ones, their preprocessing."""
