"""How the threads and event loops of this process draw on a shared store together.

One *courier* for each store carries what all of them have to say, many at once, so that nobody's loop waits
for a disk or a network. A *desk* for each key knows what this process holds and has yet to settle; it has a
*line* for each class, in which callers wait.
"""
