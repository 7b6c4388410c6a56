"""Second derivatives: closed forms of layers, compiled gradients."""
