"""VLMo: one transformer with an expert feed-forward a modality, in the order of the paper."""
