"""The torch modules of Versatile Diffusion, one implementation for every size."""
