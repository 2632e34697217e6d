"""What long work shows of itself: figures, and views of them in a terminal, a notebook and a log."""
