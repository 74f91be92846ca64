"""Networks: ViT and DPT teachers, ResNet students, the binning head, weight loading."""
