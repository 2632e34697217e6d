"""What headgate does together with other people's libraries: one module for each, which decides nothing."""
