"""Jobs as the watch shows them: what polls, lists and the queue are answered from."""
