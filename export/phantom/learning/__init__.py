"""How the phantom's models are learned: the world as tensors, a learner a model, the loop and the recipe."""
