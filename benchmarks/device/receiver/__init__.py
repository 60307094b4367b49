"""What a device runs while a bundle is brought to it: Python 3.9 and nothing else.

The text of these files is sent over SSH and executed; it stays nowhere on the device. Both sides speak in frames. The
device answers every frame that is not a "chunk"; between answers it says "alive", so that silence means that it is
gone, and it ends when it hears nothing itself. Whatever it started ends with it, and so does its hold on the lock.

Files arrive under their sha256 in `incoming/` and are verified there. Only when all are there, a new `bundle/` is put
together beside the old one and takes its place; a run that is cut short at any point leaves one that is whole.
"""
