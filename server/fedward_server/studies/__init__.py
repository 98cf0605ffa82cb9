"""The centre's studies: the book, the queue, who may do what, the interface and the supervisor."""
