"""The vocabulary: methods, shapes, errors, events. Pure data; knows no order of messages."""
