"""In: samples as tensors (state, action, logged density, feedback). Out: the losses, networks and fusion formulas of
the two-stage learner, and the actor that serves a learned policy from a bundle. Pure torch: no Ray."""
