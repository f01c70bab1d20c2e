"""Who else can do the work of a decode: the engines, our torch module and diffusers, measured in turns."""
