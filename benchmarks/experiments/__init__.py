"""Every experiment of the paper on the phantom, and the page that shows what came out."""
