"""What the compiler made of a kernel: registers, spills, instructions; what a step launches."""
