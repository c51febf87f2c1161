"""What the compiler made of the kernels (registers, spills, instructions), and what a step launches."""
