"""Audio folders, their labels and texts, and what is read of them."""
