"""How a network is called: modes, batches, expected answers, gradients."""
